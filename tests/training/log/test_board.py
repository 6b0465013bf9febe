"""The TensorBoard file: every point is in it, and a disk that refuses costs the curves alone."""

from __future__ import annotations

from helpers.event_files import events
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import SessionLog

from pangu_sigma.training.log.board import TensorBoardWriter


def test_every_point_is_in_the_file_after_the_step_that_it_begins_at(tmp_path):
    board = TensorBoardWriter(tmp_path / "board", 5)
    board.add(6, {"loss": 2.5})
    board.flush()
    board.add(7, {"loss": 2.25})
    board.close()
    version, start, *points = events(tmp_path / "board")
    assert version.file_version == "brain.Event:2"
    assert (start.step, start.session_log.status) == (5, SessionLog.START)
    values = [(event.step, event.summary.value[0].tag, event.summary.value[0].simple_value) for event in points]
    assert values == [(6, "loss", 2.5), (7, "loss", 2.25)]
    assert all(event.wall_time > 1e9 for event in points)


def test_a_disk_that_refuses_is_said_once_and_stops_nothing(tmp_path, monkeypatch, caplog):
    board = TensorBoardWriter(tmp_path / "board", 1)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(EventsWriter, "flush", full)
    for step in range(3):
        board.add(step, {"loss": 1.0})
        board.flush()
    board.close()
    assert caplog.text.count("No space left on device; nothing more is written for TensorBoard") == 1


def test_a_folder_that_cannot_be_made_stops_nothing(tmp_path, caplog):
    (tmp_path / "file").touch()
    TensorBoardWriter(tmp_path / "file" / "board", 1).add(1, {"loss": 1.0})
    assert "nothing more is written for TensorBoard" in caplog.text
