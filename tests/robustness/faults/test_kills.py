"""SIGKILL at random moments of all stages, again and again, and then resumption: always the same manifest."""

import json
import random
import shutil
import signal
import sys
import time

import pytest
from helpers.harness import leftovers, state_of, wait_until

ORPHAN_SECONDS = 8.0  # a loader's process looks for its parent every five
EARLY = ("pool", "train", "predict", "score", "select", "manifest")


def kill_at_random(pipeline, output, stage, draw, *more: object):
    """Run until a stage, kill it at a random moment of it, and return which stage was cut short, if one was."""
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
    """Return what the arms come to, without how long they took."""
    models = json.loads((output / "retrain" / "stage.json").read_bytes())["facts"]["models"]
    kept = [{name: value for name, value in model.items() if name != "seconds"} for model in models]
    return kept, (output / "evaluate" / "figures.json").read_bytes()


def check_same(pipeline, output):
    assert pipeline.manifest(output) == pipeline.manifest()
    assert leftovers(output) == []


def test_killed_and_resumed_on_imported_answers(imported, tmp_path):
    draw = random.Random(7)
    output = imported.copy(tmp_path, without=imported.stages)
    for stage in ("pool", "predict", "score"):
        kill_at_random(imported, output, stage, draw)
    imported.finish(output)
    check_same(imported, output)


@pytest.mark.faults
@pytest.mark.parametrize("seed", range(10))
def test_ten_times_killed_over_all_stages(trained, tmp_path, measured, capsys, seed):
    draw, kills = random.Random(seed), 0
    while kills < 10:
        first = draw.randrange(len(trained.stages))
        output = trained.copy(tmp_path, without=trained.stages[first:])
        words = ("--until", "manifest") if trained.stages[first] in EARLY else ()
        names = [stage for stage in trained.stages[first:] if not words or stage in EARLY]
        for _ in range(draw.randint(2, 4)):
            cut = [stage for stage in names if state_of(output, stage) != "complete"]
            if not cut or kills == 10:
                break
            stage = draw.choice(cut[:2])
            found, seconds = kill_at_random(
                trained, output, stage, draw, *words, "CURATE.NUM_PROCESSES", draw.choice((1, 2))
            )
            if found is not None:
                kills += 1
                measured("killed in", found or "the end", seconds)
                with capsys.disabled():
                    sys.stderr.write(f" seed {seed} kill {kills}: in {found or 'the end'}\n")
        trained.finish(output, *words)
        check_same(trained, output)
        if not words:
            assert figures(output) == figures(trained.output)
        shutil.rmtree(output)
