"""Callbacks: what they write, and that none of them ends a run by an error of its own."""

import json
import struct
import sys

import numpy as np
import pytest

from jaxmeta import MetaState
from jaxmeta.training import JsonLines, TensorBoard
from jaxmeta.training.callbacks import Callbacks


def at(step):
    return MetaState(np.int32(step), (), (), np.int32(0))


LOSS = {"loss": np.array([1.0, 0.5], np.float32)}


def test_a_callback_that_raises_is_said_once_and_the_others_are_called():
    seen = []

    def broken(state, metrics):
        raise RuntimeError("no network")

    called = Callbacks([broken, lambda state, metrics: seen.append(int(state.step))])
    with pytest.warns(
        UserWarning, match=r"raised at step 2, and the run goes on.*broken: RuntimeError: no network \(.*"
    ):
        assert not called(at(2), LOSS)
    assert not called(at(4), LOSS)  # not said again, which would be an error here
    assert seen == [2, 4]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_what_ends_a_process_is_no_error_of_a_callback(error):
    def stop(state, metrics):
        raise error

    with pytest.raises(error):
        Callbacks([stop])(at(2), LOSS)


def test_lines_are_what_the_chunks_were(tmp_path):
    log = JsonLines(tmp_path / "log.jsonl")
    log(at(2), {**LOSS, "rate": np.array([np.nan, 1]), "is_finite": np.array([True, False])})
    log(at(4), {"loss": np.array([[1, 3], [np.inf, 1]]), "validation/mse": np.array(0.5)})
    first, second = (json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines())
    assert first.pop("seconds") <= second.pop("seconds")
    assert first == {"step": 2, "loss": 0.75, "rate": None, "is_finite": 0.5}
    assert second == {"step": 4, "loss": [2.0, None], "validation/mse": 0.5}


@pytest.mark.parametrize("end", ["", "\n\n", '\n{"step": 8, "sec', "\n[3]\n", "\n\xff\x00"])
def test_a_run_that_goes_on_goes_on_in_its_file(end, tmp_path):
    """Steps that are taken anew are dropped; a line that a kill or a full disk has torn is too, and is said."""
    path = tmp_path / "log.jsonl"
    first = JsonLines(path)
    for step in (2, 4, 6):
        first(at(step), LOSS)
    path.write_text(path.read_text().rstrip() + end, encoding="latin-1")
    again = JsonLines(path)
    if end.strip():
        with pytest.warns(UserWarning, match=rf"{path}: torn in line 4 of \d, which is dropped"):
            again(at(6), LOSS)
    else:
        again(at(6), LOSS)
    assert [line["step"] for line in again.lines()] == [2, 4, 6]
    seconds = [line["seconds"] for line in again.lines()]
    assert seconds == sorted(seconds)


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(OSError, match=r"nowhere.log.jsonl could not be written: No such file or directory"):
        JsonLines(tmp_path / "nowhere" / "log.jsonl")(at(2), LOSS)


def scalars(directory):
    """What is in TensorBoard's files: records of a length, its checksum, an event and its checksum."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    found = []
    for path in sorted(directory.iterdir()):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            event = event_pb2.Event.FromString(content[12 : 12 + length])
            found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
            content = content[16 + length :]
    return found


def test_tensorboard_gets_the_means(tmp_path):
    pytest.importorskip("tensorboardX")
    write = TensorBoard(tmp_path / "run")
    write(at(2), {**LOSS, "validation/mse": np.array(0.5)})
    write(at(4), {"loss": np.array([[1.0, 3.0], [4.0, 0.0]])})
    write.close()
    expected = [(2, "loss", 0.75), (2, "validation/mse", 0.5), (4, "loss/0", 2.0), (4, "loss/1", 2.0)]
    assert sorted(scalars(tmp_path / "run")) == expected


def test_without_its_package_tensorboard_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ImportError, match=r"pip install 'jaxmeta\[tensorboard\]'"):
        TensorBoard("run")
