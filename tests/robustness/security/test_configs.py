"""A config of a stranger: no code, no network, no endless file, no tree that grows, no consent in the user's name."""

from __future__ import annotations

import os
import pickle
import socket
from pathlib import Path

import numpy as np
import pytest

from detcurate.config.declaration import load_config
from detcurate.errors import ConfigError


class Attack:
    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.proof),)


def refused(tmp_path, text, *overrides: str):
    path = tmp_path / "theirs.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    assert len(str(caught.value)) < 3_000
    return str(caught.value)


@pytest.mark.parametrize("tag", ["python/object/apply:os.mkdir", "python/object/new:os.mkdir"])
def test_yaml_makes_no_objects(tmp_path, tag):
    proof = tmp_path / "proof"
    assert "plain YAML" in refused(tmp_path, f'OUTPUT_DIR: !!{tag} ["{proof}"]')
    (tmp_path / "base.yaml").write_text(f'OUTPUT_DIR: !!{tag} ["{proof}"]')
    assert "plain YAML" in refused(tmp_path, "_BASE_: base.yaml")
    assert not proof.exists()


def test_a_python_file_is_not_run(tmp_path):
    path, proof = tmp_path / "config.py", tmp_path / "proof"
    path.write_text(f"import os\nos.mkdir({str(proof)!r})\n")
    with pytest.raises(ConfigError):
        load_config(path)
    assert not proof.exists()


@pytest.mark.parametrize("open_with", ["[", "{a: "])
def test_aliases_of_aliases_do_not_grow(tmp_path, open_with):
    """Nine levels of nine aliases: 387 million values from 300 characters."""
    close = "]" if open_with == "[" else "}"
    lines = [f"A: &a0 {open_with}x{close}"]
    for level in range(1, 10):
        items = ", ".join([f"*a{level - 1}"] * 9 if open_with == "[" else [f"k{k}: *a{level - 1}" for k in range(9)])
        lines.append(f"B{level}: &a{level} " + (f"[{items}]" if open_with == "[" else f"{{{items}}}"))
    lines.append("SEED: *a9")
    assert "aliases written out" in refused(tmp_path, "\n".join(lines))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("MODEL: &a {X: *a}", "must not hold itself"),
        ("SEED: " + "[" * 500 + "]" * 500, "nested more than"),
        ("SEED: " + "7" * 5_000, "a number must have at most"),
        ("SEED: " + "1" + ":59" * 100_000, "a number must have at most"),
        ("SEED: 2001-99-99", "theirs.yaml: "),
        ("#" * (2 << 20), "more than"),
        ('SEED: "' + "-" * 50_000 + '1"', "SEED: "),
    ],
)
def test_values_that_would_take_all_time_or_memory(tmp_path, text, message):
    assert message in refused(tmp_path, text)


def test_an_override_that_would_break_the_reader(tmp_path):
    assert "SEED: " in refused(tmp_path, "SEED: 0", "SEED", "-" * 50_000 + "1")


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_base_that_never_ends(tmp_path, kind):
    name = "/dev/zero"
    if kind == "pipe":
        os.mkfifo(tmp_path / "base.yaml")
        name = "base.yaml"
    assert "no regular file" in refused(tmp_path, f"_BASE_: {name}")


def test_bases_do_not_multiply(tmp_path):
    """Each of 20 files names the next one 20 times."""
    for number in range(20):
        (tmp_path / f"{number}.yaml").write_text(f"_BASE_: [{', '.join([f'{number + 1}.yaml'] * 20)}]")
    (tmp_path / "20.yaml").write_text("SEED: 1")
    assert "at most 32 files" in refused(tmp_path, "_BASE_: 0.yaml")


@pytest.mark.parametrize("scheme", ["http", "https", "s3", "detectron2"])
def test_a_base_is_not_fetched(tmp_path, monkeypatch, scheme):
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("the network was used"))
    message = refused(tmp_path, f"_BASE_: {scheme}://me:pa55word@example.org/base.yaml")
    assert "(got a URL)" in message
    assert "pa55word" not in message


def test_a_config_cannot_allow_pickles_in_the_users_name(tmp_path):
    """With ALLOW_PICKLE and MODEL.WEIGHTS in one file, running a config would run its maker's code."""
    pytest.importorskip("detectron2")
    from detcurate.d2.checkpoints import load_initial_weights, model_of

    weights, proof, config = tmp_path / "w.pkl", tmp_path / "proof", tmp_path / "theirs.yaml"
    weights.write_bytes(pickle.dumps({"model": Attack(proof), "__author__": "x"}))
    config.write_text(
        f"MODEL: {{META_ARCHITECTURE: RetinaNet, WEIGHTS: {weights}}}\nCURATE: {{TRAIN: {{ALLOW_PICKLE: True}}}}"
    )
    with pytest.raises(ConfigError, match="CURATE.TRAIN.ALLOW_PICKLE: must be given on the command line"):
        cfg = load_config(config)
        load_initial_weights(model_of(cfg.dump()), str(weights), allow_pickle=cfg.CURATE.TRAIN.ALLOW_PICKLE)
    assert not proof.exists()


@pytest.mark.parametrize("how", ["object", "in an array", "bytes"])
def test_a_pickle_of_arrays_can_hide_nothing(tmp_path, how):
    pytest.importorskip("detectron2")
    from torch import nn

    from detcurate.d2.checkpoints import load_initial_weights

    weights, proof = tmp_path / "w.pkl", tmp_path / "proof"
    attack = Attack(proof)
    model = {"object": attack, "in an array": np.array([attack], object)}.get(how)
    content = pickle.dumps({"model": {"weight": np.zeros((1, 1)), "x": model}, "__author__": "x"})
    if how == "bytes":  # a call of _codecs.encode with a codec that is no plain one
        content = b"c_codecs\nencode\n(Vx\nVrot13\ntR."
    weights.write_bytes(content)
    with pytest.raises(ConfigError, match="could|can run code"):
        load_initial_weights(nn.Linear(1, 1), str(weights), allow_pickle=False)
    assert not proof.exists()
