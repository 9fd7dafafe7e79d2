"""SIGKILL at random moments of all stages, then resumption: always the same manifest."""

import json
import random
import shutil
import signal
import sys
import time

import pytest
from helpers.harness import leftovers, state_of, wait_until

ORPHAN_SECONDS = 8.0  # a data loader's process checks its parent every five
EARLY = ("pool", "train", "predict", "score", "select", "manifest")


def kill_at_random(pipeline, output, stage, draw, *more: object):
    """Kill a run at a random moment of a stage; return the interrupted stage and the seconds until its end."""
    running = pipeline.start(output, *more)
    wait_until(lambda: state_of(output, stage) in ("started", "complete"), running)
    time.sleep(draw.uniform(0, max(0.05, pipeline.seconds[stage])))
    running.kill(signal.SIGKILL, whole_group=draw.random() < 0.5)
    status = running.wait()
    begin = time.monotonic()
    assert not running.orphans(ORPHAN_SECONDS), running.text
    assert status in (0, -signal.SIGKILL), running.text
    cut = [name for name in pipeline.stages if state_of(output, name) != "complete"]
    return (cut[0] if cut else "") if status else None, time.monotonic() - begin


def figures(output):
    """Return the results of the arms without their durations."""
    models = json.loads((output / "retrain" / "stage.json").read_bytes())["facts"]["models"]
    kept = [{name: value for name, value in model.items() if name != "seconds"} for model in models]
    return kept, (output / "evaluate" / "figures.json").read_bytes()


def check_same(pipeline, output):
    assert pipeline.manifest(output) == pipeline.manifest()
    assert leftovers(output) == []


def test_killed_run_on_imported_predictions_resumes_to_same_manifest(imported, tmp_path):
    draw = random.Random(7)
    output = imported.copy(tmp_path, without=imported.stages)
    for stage in ("pool", "predict", "score"):
        kill_at_random(imported, output, stage, draw)
    imported.finish(output)
    check_same(imported, output)


@pytest.mark.faults
@pytest.mark.parametrize("seed", range(10))
def test_run_killed_ten_times_resumes_to_same_manifest(trained, tmp_path, measured, capsys, seed):
    draw, kills = random.Random(seed), 0
    while kills < 10:
        first = draw.randrange(len(trained.stages))
        output = trained.copy(tmp_path, without=trained.stages[first:])
        arguments = ("--until", "manifest") if trained.stages[first] in EARLY else ()
        names = [stage for stage in trained.stages[first:] if not arguments or stage in EARLY]
        for _ in range(draw.randint(2, 4)):
            open_stages = [stage for stage in names if state_of(output, stage) != "complete"]
            if not open_stages or kills == 10:
                break
            stage = draw.choice(open_stages[:2])
            found, seconds = kill_at_random(
                trained, output, stage, draw, *arguments, "CURATE.NUM_PROCESSES", draw.choice((1, 2))
            )
            if found is not None:
                kills += 1
                measured("killed in", found or "the end", seconds)
                with capsys.disabled():
                    sys.stderr.write(f" seed {seed} kill {kills}: in {found or 'the end'}\n")
        trained.finish(output, *arguments)
        check_same(trained, output)
        if not arguments:
            assert figures(output) == figures(trained.output)
        shutil.rmtree(output)
