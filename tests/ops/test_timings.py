# SPDX-License-Identifier: Apache-2.0
import json
import time

import pytest
import torch

from sniper.ops import timings


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SNIPER_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(timings, "_choices", None)
    return tmp_path


def taking(seconds: float, calls: list[float]):
    def run() -> torch.Tensor:
        calls.append(seconds)
        time.sleep(seconds)
        return torch.zeros(1)

    return run


def test_the_fastest_is_found_once_and_remembered(own_cache):
    calls: list[float] = []
    candidates = {"slow": taking(0.02, calls), "quick": taking(0.001, calls)}
    assert timings.fastest("key", candidates) == "quick"
    timed = len(calls)
    assert timings.fastest("key", candidates) == "quick" and len(calls) == timed
    saved = json.loads((own_cache / "executors-1.json").read_text())
    assert set(saved["key"]) == {"slow", "quick"}


def test_another_process_takes_over_what_is_on_disk(own_cache):
    times = {"key": {"first": 2.0, "second": 1.0}}
    (own_cache / "executors-1.json").write_text(json.dumps(times))
    calls: list[float] = []
    candidates = {"first": taking(0, calls), "second": taking(0, calls)}
    assert timings.fastest("key", candidates) == "second" and calls == []


def test_a_near_tie_goes_to_the_first(own_cache):
    times = {"key": {"first": 1.02, "second": 1.0}, "far": {"first": 1.05, "second": 1.0}}
    (own_cache / "executors-1.json").write_text(json.dumps(times))
    candidates = {"first": taking(0, []), "second": taking(0, [])}
    assert timings.fastest("key", candidates) == "first"
    assert timings.fastest("far", candidates) == "second"


def test_a_clear_loser_is_not_timed_again():
    slow: list[float] = []
    timings.fastest("key", {"quick": taking(0.001, []), "slow": taking(0.01, slow)})
    assert len(slow) == 2  # the warm-up and one timed run


def test_a_damaged_file_is_measured_anew(own_cache):
    (own_cache / "executors-1.json").write_text("{")
    assert timings.fastest("key", {"only": taking(0, [])}) == "only"
    assert timings.known("key") is not None and timings.known("other") is None


def test_a_folder_that_cannot_be_written_only_forgets(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SNIPER_CACHE_DIR", str(tmp_path / "file" / "below"))
    assert timings.fastest("key", {"only": taking(0, [])}) == "only"


def test_forget_drops_memory_and_file(own_cache):
    timings.fastest("key", {"only": taking(0, [])})
    timings.forget()
    assert timings.known("key") is None and not (own_cache / "executors-1.json").exists()


def test_pairs_are_timed_too():
    assert timings.fastest("pair", {"only": lambda: (torch.zeros(1), None)}) == "only"


def test_a_choice_that_changes_is_told_and_a_new_one_is_not(own_cache):
    start = timings.generation()
    timings.fastest("key", {"one": taking(0.001, []), "two": taking(0.002, [])})
    timings.fastest("other", {"one": taking(0.001, []), "two": taking(0.002, [])})
    assert timings.generation() == start
    timings.fastest("key", {"one": taking(0.001, []), "three": taking(0.002, [])})  # timed anew
    assert timings.generation() == start + 1
    timings.forget()
    assert timings.generation() == start + 2


def test_one_choice_can_be_dropped(own_cache):
    candidates = {"one": taking(0.001, []), "two": taking(0.002, [])}
    timings.fastest("key", candidates)
    timings.fastest("other", candidates)
    start = timings.generation()
    timings.drop("key")
    timings.drop("never made")
    assert timings.known("key") is None and timings.known("other") is not None
    assert set(json.loads((own_cache / "executors-1.json").read_text())) == {"other"}
    assert timings.generation() == start + 1
