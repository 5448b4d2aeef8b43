from __future__ import annotations

import hashlib
import json
import os
import sys

import pytest
import torch
from calibrated_rounding.quant.files import header, open_checkpoint

SHARDS = {
    "model-00001-of-00002.safetensors": {"a": torch.arange(4.0), "b": torch.arange(3, dtype=torch.uint8)},
    "model-00002-of-00002.safetensors": {"c": torch.ones(2, 2)},
}


@pytest.fixture
def index(tmp_path, save):
    """A sharded checkpoint; called with changes to the weight map, it writes the index again."""
    for number, (shard, tensors) in enumerate(SHARDS.items()):
        save(tmp_path / shard, tensors, {"number": str(number), f"only{number}": "x"})
    weights = {name: shard for shard, tensors in reversed(SHARDS.items()) for name in tensors}
    path = tmp_path / "model.safetensors.index.json"

    def write(**changes):
        weight_map = {name: shard for name, shard in {**weights, **changes}.items() if shard is not None}
        path.write_text(json.dumps({"metadata": {"total_size": 35}, "weight_map": weight_map}))
        return path

    return write


def test_shards_read_as_one(index, tmp_path):
    path = index()
    with open_checkpoint(path) as checkpoint:
        assert list(checkpoint.tensors) == ["a", "b", "c"]
        assert checkpoint.metadata == {"number": "0", "only0": "x", "only1": "x"}
        assert checkpoint.paths == (path, *(tmp_path / shard for shard in SHARDS))
        for tensors in SHARDS.values():
            for name, tensor in tensors.items():
                assert torch.equal(checkpoint.read(name), tensor)
                assert b"".join(checkpoint.chunks(name, 3)) == tensor.numpy().tobytes()


def test_the_hash_is_of_the_shards_digests(index, tmp_path):
    digests = [hashlib.sha256((tmp_path / shard).read_bytes()).digest() for shard in sorted(SHARDS)]
    with open_checkpoint(index()) as checkpoint:
        checkpoint.read("c")
        assert checkpoint.sha256() == hashlib.sha256(b"".join(digests)).hexdigest()


def test_two_spellings_of_a_shard_are_one(index):
    with open_checkpoint(index()) as plain, open_checkpoint(index(a="./model-00001-of-00002.safetensors")) as dotted:
        assert dotted.paths == plain.paths
        assert list(dotted.tensors) == list(plain.tensors)


def test_index_decides_between_two_shards(index, tmp_path, save):
    save(tmp_path / "model-00002-of-00002.safetensors", {"a": torch.zeros(4), "c": torch.ones(2, 2)})
    with open_checkpoint(index()) as checkpoint:
        assert torch.equal(checkpoint.read("a"), torch.arange(4.0))
    with open_checkpoint(index(a="model-00002-of-00002.safetensors")) as checkpoint:
        assert torch.equal(checkpoint.read("a"), torch.zeros(4))


@pytest.mark.skipif(sys.platform == "win32", reason="symbolic links need a privilege there")
def test_shards_may_be_links_into_a_cache(index, tmp_path):
    (tmp_path / "blobs").mkdir()
    shard = tmp_path / "model-00002-of-00002.safetensors"
    os.rename(shard, tmp_path / "blobs" / "0123")
    shard.symlink_to(os.path.join("blobs", "0123"))
    with open_checkpoint(index()) as checkpoint:
        assert checkpoint.read("c").sum() == 4


def test_a_missing_shard_is_refused(index, tmp_path, refused):
    shard = tmp_path / "model-00002-of-00002.safetensors"
    shard.unlink()
    with refused(shard, "does not exist"):
        open_checkpoint(index())


def test_a_damaged_shard_is_refused(index, tmp_path, refused):
    shard = tmp_path / "model-00002-of-00002.safetensors"
    os.truncate(shard, shard.stat().st_size - 1)
    with refused(shard, "truncated"):
        open_checkpoint(index())


@pytest.mark.parametrize(
    ("name", "shard"), [("x", "model-00001-of-00002.safetensors"), ("a", "model-00002-of-00002.safetensors")]
)
def test_tensor_missing_in_shard_is_refused(name, shard, index, refused):
    path = index(**{name: shard})
    with refused(path, f"'{name}'", shard):
        open_checkpoint(path)


def test_a_tensor_that_the_index_lacks_is_refused(index, refused):
    with refused("model-00001-of-00002.safetensors", "'b'", "index.json"):
        open_checkpoint(index(b=None))


@pytest.mark.parametrize(
    "shard",
    ["/etc/x", "../x", "a/../../x", "..", ".", "", "C:\\x", "C:x", "\\\\host\\x", "..\\x", "nul\0", 1, ["x"], {}],
)
def test_a_shard_elsewhere_is_refused(shard, index, refused):
    path = index(a=shard)
    with refused(path, "'a'", "not a file beside it"):
        open_checkpoint(path)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[1]", "not a JSON object"),
        (b"{}", "no weight_map"),
        (b'{"weight_map": []}', "no weight_map"),
        (b'{"weight_map": {"a": "x", "a": "y"}}', "'a' twice"),
    ],
)
def test_a_malformed_index_is_refused(text, why, tmp_path, refused):
    path = tmp_path / "model.safetensors.index.json"
    path.write_bytes(text)
    with refused(path, why):
        open_checkpoint(path)


def test_more_tensors_than_any_model_has_are_refused(index, tmp_path, refused, monkeypatch):
    """A header of 100 MB may list a million; each costs time in all that follows, in ComfyUI's process as well."""
    monkeypatch.setattr(header, "MAX_TENSORS", 2)
    with refused(index(), "lists 3 tensors", "more than 2"):
        open_checkpoint(index())
    with open_checkpoint(tmp_path / next(iter(SHARDS))) as checkpoint:
        assert len(checkpoint.tensors) == 2
    monkeypatch.setattr(header, "MAX_TENSORS", 1)
    with refused(next(iter(SHARDS)), "lists 2 tensors"):
        open_checkpoint(tmp_path / next(iter(SHARDS)))


def test_no_file_stays_open_after_a_refusal(index, tmp_path, refused):
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("open files are listed under /proc/self/fd on Linux only")
    path = index(x="model-00001-of-00002.safetensors")
    before = len(os.listdir("/proc/self/fd"))
    with refused(path):
        open_checkpoint(path)
    assert len(os.listdir("/proc/self/fd")) == before
