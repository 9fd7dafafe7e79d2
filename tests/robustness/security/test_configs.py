"""Untrusted configs: no code, no network, no endless file, no exploding tree, no consent for the user."""

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
def test_yaml_object_tag_is_refused(tmp_path, tag):
    proof = tmp_path / "proof"
    assert "plain YAML" in refused(tmp_path, f'OUTPUT_DIR: !!{tag} ["{proof}"]')
    (tmp_path / "base.yaml").write_text(f'OUTPUT_DIR: !!{tag} ["{proof}"]')
    assert "plain YAML" in refused(tmp_path, "_BASE_: base.yaml")
    assert not proof.exists()


def test_python_file_is_not_executed(tmp_path):
    path, proof = tmp_path / "config.py", tmp_path / "proof"
    path.write_text(f"import os\nos.mkdir({str(proof)!r})\n")
    with pytest.raises(ConfigError):
        load_config(path)
    assert not proof.exists()


@pytest.mark.parametrize("open_with", ["[", "{a: "])
def test_exploding_aliases_are_refused(tmp_path, open_with):
    """Nine levels of nine aliases: 387 million values from 300 characters."""
    close = "]" if open_with == "[" else "}"
    lines = [f"A: &a0 {open_with}x{close}"]
    for level in range(1, 10):
        items = ", ".join([f"*a{level - 1}"] * 9 if open_with == "[" else [f"k{k}: *a{level - 1}" for k in range(9)])
        lines.append(f"B{level}: &a{level} " + (f"[{items}]" if open_with == "[" else f"{{{items}}}"))
    lines.append("SEED: *a9")
    assert "aliases" in refused(tmp_path, "\n".join(lines))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("MODEL: &a {X: *a}", "contains itself"),
        ("SEED: " + "[" * 500 + "]" * 500, "nested more than"),
        ("SEED: " + "7" * 5_000, "a number has"),
        ("SEED: " + "1" + ":59" * 100_000, "a number has"),
        ("SEED: 2001-99-99", "theirs.yaml: "),
        ("#" * (2 << 20), "more than"),
        ('SEED: "' + "-" * 50_000 + '1"', "SEED: "),
    ],
)
def test_value_beyond_bounds_is_refused(tmp_path, text, message):
    assert message in refused(tmp_path, text)


def test_override_beyond_bounds_is_refused(tmp_path):
    assert "SEED: " in refused(tmp_path, "SEED: 0", "SEED", "-" * 50_000 + "1")


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_endless_base_is_refused(tmp_path, kind):
    name = "/dev/zero"
    if kind == "pipe":
        os.mkfifo(tmp_path / "base.yaml")
        name = "base.yaml"
    assert "not a regular file" in refused(tmp_path, f"_BASE_: {name}")


def test_many_bases_are_refused(tmp_path):
    """Each of 20 files names the next one 20 times."""
    for number in range(20):
        (tmp_path / f"{number}.yaml").write_text(f"_BASE_: [{', '.join([f'{number + 1}.yaml'] * 20)}]")
    (tmp_path / "20.yaml").write_text("SEED: 1")
    assert "32" in refused(tmp_path, "_BASE_: 0.yaml")


@pytest.mark.parametrize("scheme", ["http", "https", "s3", "detectron2"])
def test_base_url_is_not_fetched(tmp_path, monkeypatch, scheme):
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("the network was used"))
    message = refused(tmp_path, f"_BASE_: {scheme}://me:pa55word@example.org/base.yaml")
    assert "(got a URL)" in message
    assert "pa55word" not in message


def test_allow_pickle_in_config_file_is_refused(tmp_path):
    """With ALLOW_PICKLE and MODEL.WEIGHTS in one file, a config could run its author's code."""
    pytest.importorskip("detectron2")
    from detcurate.d2.checkpoints import load_initial_weights, model_of

    weights, proof, config = tmp_path / "w.pkl", tmp_path / "proof", tmp_path / "theirs.yaml"
    weights.write_bytes(pickle.dumps({"model": Attack(proof), "__author__": "x"}))
    config.write_text(
        f"MODEL: {{META_ARCHITECTURE: RetinaNet, WEIGHTS: {weights}}}\nCURATE: {{TRAIN: {{ALLOW_PICKLE: True}}}}"
    )
    with pytest.raises(ConfigError, match="^CURATE.TRAIN.ALLOW_PICKLE: "):
        cfg = load_config(config)
        load_initial_weights(model_of(cfg.dump()), str(weights), allow_pickle=cfg.CURATE.TRAIN.ALLOW_PICKLE)
    assert not proof.exists()


@pytest.mark.parametrize("how", ["object", "in an array", "bytes"])
def test_pickle_with_hidden_object_is_refused(tmp_path, how):
    pytest.importorskip("detectron2")
    from torch import nn

    from detcurate.d2.checkpoints import load_initial_weights

    weights, proof = tmp_path / "w.pkl", tmp_path / "proof"
    attack = Attack(proof)
    model = {"object": attack, "in an array": np.array([attack], object)}.get(how)
    content = pickle.dumps({"model": {"weight": np.zeros((1, 1)), "x": model}, "__author__": "x"})
    if how == "bytes":  # a call of _codecs.encode with an unusual codec
        content = b"c_codecs\nencode\n(Vx\nVrot13\ntR."
    weights.write_bytes(content)
    with pytest.raises(ConfigError, match="could|can run code"):
        load_initial_weights(nn.Linear(1, 1), str(weights), allow_pickle=False)
    assert not proof.exists()
