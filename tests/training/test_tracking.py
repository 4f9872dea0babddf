import json
import math

import numpy as np
import pytest
import torch

from limbeck.errors import LimbeckError
from limbeck.training.tracking import Tracker, read_metrics


def tracker(folder, **options):
    return Tracker(folder, **{"track": ()} | options)


def test_figures_come_back_exactly(tmp_path):
    with tracker(tmp_path / "run") as track:
        track.log(1, {"loss": 1 / 3, "lr": torch.tensor(2.0**-70, dtype=torch.float64)})
        track.log(2, {"loss": np.float64(1e300)})
        track.log(2, {"fid": torch.tensor([4])})
    assert read_metrics(tmp_path / "run" / "metrics.jsonl") == {
        "loss": ([1, 2], [1 / 3, 1e300]),
        "lr": ([1], [2.0**-70]),
        "fid": ([2], [4.0]),
    }


def test_lines_are_on_file_at_once_and_valid_json_without_finite_values(tmp_path):
    track = tracker(tmp_path)
    track.log(3, {"a": math.nan, "b": -math.inf, "c": math.inf, "d": 0.5})
    text = (tmp_path / "metrics.jsonl").read_text()
    line = json.loads(text, parse_constant=pytest.fail)
    assert line == {"step": 3, "a": "nan", "b": "-inf", "c": "inf", "d": 0.5}
    figures = read_metrics(track.path)
    assert math.isnan(figures["a"][1][0])
    assert (figures["b"][1], figures["c"][1]) == ([-math.inf], [math.inf])
    track.close()


def write(folder, steps):
    with tracker(folder) as track:
        for step in steps:
            track.log(step, {"loss": step / 7})
    return folder / "metrics.jsonl"


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
    whole = write(tmp_path / "whole", range(1, 5))
    for cut in range(len(whole.read_bytes()) + 1):  # killed after any byte
        folder = tmp_path / f"cut{cut}"
        path = write(folder, [])
        path.write_bytes(whole.read_bytes()[:cut])
        complete = whole.read_bytes()[:cut].count(b"}")  # steps that were wholly written
        k = min(complete, 2)
        with tracker(folder, resume_from=k) as track:
            for step in range(k + 1, 5):
                track.log(step, {"loss": step / 7})
        assert path.read_bytes() == whole.read_bytes()


def test_metrics_of_another_run_are_not_appended_to(tmp_path):
    path = write(tmp_path, [1])
    before = path.read_bytes()
    with pytest.raises(LimbeckError, match="already has metrics"):
        tracker(tmp_path)
    assert path.read_bytes() == before


def test_a_running_process_may_be_read(tmp_path):
    path = write(tmp_path, [1, 2])
    path.write_bytes(path.read_bytes()[:-5])
    assert read_metrics(path) == {"loss": ([1], [1 / 7])}


@pytest.mark.parametrize("line", ['{"step": 1', "[1]", '{"loss": 1}', '{"step": "1"}', '{"step": 1, "a": []}', "\xff"])
def test_a_damaged_line_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + line.encode("latin-1") + b'\n{"step": 2}\n')
    with pytest.raises(LimbeckError, match="line 2"):
        read_metrics(path)
    with pytest.raises(LimbeckError, match="line 2"):
        tracker(tmp_path, resume_from=1)
    assert path.read_bytes().endswith(b'{"step": 2}\n')


def test_missing_metrics_are_named(tmp_path):
    with pytest.raises(LimbeckError, match="no metrics at"):
        read_metrics(tmp_path / "metrics.jsonl")


@pytest.mark.parametrize("value", ["high", None, torch.zeros(2), [1.0]])
def test_a_figure_is_a_number(tmp_path, value):
    with tracker(tmp_path) as track, pytest.raises(LimbeckError, match="'loss' of step 4"):
        track.log(4, {"loss": value})
    assert read_metrics(tmp_path / "metrics.jsonl") == {}


def test_step_is_no_figure(tmp_path):
    with tracker(tmp_path) as track, pytest.raises(LimbeckError, match="'step'"):
        track.log(4, {"step": 3})


def test_sinks_get_every_figure(tmp_path):
    seen = []
    with tracker(tmp_path, sinks=[lambda step, figures: seen.append((step, figures))]) as track:
        track.log(1, {"loss": torch.tensor(0.5)})
        track.log(2, {"loss": math.inf})
    assert seen == [(1, {"loss": 0.5}), (2, {"loss": math.inf})]


def test_a_sink_that_can_be_closed_is(tmp_path):
    class Open:
        closed = 0

        def __call__(self, step, figures):
            pass

        def close(self):
            self.closed += 1

    sink = Open()
    with tracker(tmp_path, sinks=[sink]) as track:
        track.log(1, {"loss": 0.5})
        assert sink.closed == 0
    assert sink.closed == 1
