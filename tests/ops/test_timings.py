# SPDX-License-Identifier: Apache-2.0
import errno
import json
import pathlib
import subprocess
import sys
import threading
import time

import pytest
import torch

from sniper.ops import timings


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SNIPER_CACHE_DIR", str(tmp_path))
    forget_in_memory(monkeypatch)
    return tmp_path


def forget_in_memory(monkeypatch):
    """What a new process starts with."""
    monkeypatch.setattr(timings, "_choices", None)


def taking(seconds: float, calls: list[float], value: float = 0.0):
    def run() -> torch.Tensor:
        calls.append(seconds)
        time.sleep(seconds)
        return torch.full((1,), value)

    return run


def played(monkeypatch, **samples: list[float]):
    """Candidates whose samples are given; the last sample goes on for ever."""
    left = {name: list(values) for name, values in samples.items()}

    def sample(run):
        name = run()[1]
        return left[name].pop(0) if len(left[name]) > 1 else left[name][0]

    monkeypatch.setattr(timings, "_sample", sample)
    monkeypatch.setattr(timings, "_tensors", lambda result: [result[0]])
    return {name: (lambda name=name: (torch.zeros(1), name)) for name in samples}


def saved(folder) -> dict:
    return json.loads((folder / "backend-times-3.json").read_text())["choices"]


def save(folder, **choices) -> None:
    data = {"format": 3, "choices": choices}
    (folder / "backend-times-3.json").write_text(json.dumps(data))


def choice(sure: bool = True, **seconds: float) -> dict:
    return {"seconds": seconds, "sure": sure, "samples": 3, "failed": []}


def test_the_fastest_is_found_once_and_remembered(own_cache):
    calls: list[float] = []
    candidates = {"slow": taking(0.02, calls), "quick": taking(0.001, calls)}
    assert timings.fastest("key", candidates) == "quick"
    timed = len(calls)
    assert timings.fastest("key", candidates) == "quick" and len(calls) == timed
    assert set(saved(own_cache)["key"]["seconds"]) == {"slow", "quick"}


def test_another_process_takes_over_what_is_on_disk(own_cache):
    save(own_cache, key=choice(first=2.0, second=1.0))
    calls: list[float] = []
    candidates = {"first": taking(0, calls), "second": taking(0, calls)}
    assert timings.fastest("key", candidates) == "second" and calls == []


def test_a_near_tie_goes_to_the_first(own_cache):
    save(own_cache, key=choice(first=1.02, second=1.0), far=choice(first=1.05, second=1.0))
    candidates = {"first": taking(0, []), "second": taking(0, [])}
    assert timings.fastest("key", candidates) == "first"
    assert timings.fastest("far", candidates) == "second"


def test_a_clear_loser_is_not_timed_again():
    slow: list[float] = []
    timings.fastest("key", {"quick": taking(0.001, []), "slow": taking(0.01, slow)})
    assert len(slow) <= 4  # once to warm up and compare, three samples


@pytest.mark.parametrize("disturbed", [1.4, 20.0])  # 20: far beyond what is not timed again
def test_one_disturbed_sample_does_not_decide(monkeypatch, disturbed):
    candidates = played(monkeypatch, slow=[1.2], quick=[disturbed, 1.0])
    assert timings.fastest("key", candidates) == "quick"
    assert timings._load()["key"].sure


def test_what_stays_unclear_is_looked_at_again_when_asked(monkeypatch, own_cache):
    restless = [1.0, 1.4, 0.9, 1.3, 1.1, 1.45, 0.95, 1.2, 1.35, 1.0]
    candidates = played(monkeypatch, first=restless, second=restless[::-1])
    first = timings.fastest("key", candidates)
    assert not saved(own_cache)["key"]["sure"]
    assert timings.fastest("key", candidates) == first  # once a process
    forget_in_memory(monkeypatch)
    calm = played(monkeypatch, first=[2.0], second=[1.0])
    assert timings.fastest("key", calm) == first  # a run gets the same bits twice
    with timings.looking_again():
        generation = timings.generation()
        calm = played(monkeypatch, first=[2.0], second=[1.0])
        assert timings.fastest("key", calm) == "second" and saved(own_cache)["key"]["sure"]
        assert timings.generation() == generation + (first != "second")
    # Whoever trains in the same process afterwards keeps what is unsure.
    save(own_cache, key=choice(sure=False, first=1.0, second=1.2))
    forget_in_memory(monkeypatch)
    assert timings.fastest("key", calm) == "first"


def test_an_unsure_second_look_overturns_nothing(monkeypatch, own_cache):
    save(own_cache, key=choice(sure=False, first=1.0, second=1.2))
    restless = [1.0, 1.4, 0.9, 1.3, 1.1, 1.45, 0.95, 1.2, 1.35, 1.0]
    candidates = played(monkeypatch, first=restless, second=restless[::-1])
    with timings.looking_again():
        assert timings.fastest("key", candidates) == "first"
    assert saved(own_cache)["key"]["seconds"]["second"] == 1.2


def test_a_wrong_result_is_left_out(own_cache):
    calls: list[float] = []
    candidates = {"wrong": taking(0, calls, 1.0), "right": taking(0.001, [], 1.1)}
    with pytest.warns(UserWarning, match="wrong is not used, right runs instead: an entry"):
        assert timings.fastest("key", candidates) == "right"
    assert saved(own_cache)["key"]["failed"] == ["wrong"] and len(calls) == 1
    assert timings.fastest("key", candidates) == "right" and len(calls) == 1


def test_a_candidate_that_raises_is_left_out(own_cache):
    def broken():
        raise RuntimeError("out of resource: shared memory\nRequired: 300000")

    candidates = {"broken": broken, "right": taking(0, [])}
    with pytest.warns(UserWarning, match="RuntimeError: out of resource: shared memory Required"):
        assert timings.fastest("key", candidates) == "right"


def test_what_the_last_candidate_raises_is_the_callers():
    def broken():
        raise ValueError("x: expected another shape")

    with pytest.raises(ValueError, match="another shape"):
        timings.fastest("key", {"first": taking(0, []), "last": broken})


@pytest.mark.parametrize(
    "text", ["{", "[]", "null", '{"format": 2, "choices": {}}', '{"format": 3, "choices": []}']
)
def test_a_file_of_another_kind_is_set_aside(own_cache, text):
    path = own_cache / "backend-times-3.json"
    path.write_text(text)
    with pytest.warns(UserWarning, match="cannot be used .*; it is kept as .*damaged"):
        assert timings.fastest("key", {"only": taking(0, [])}) == "only"
    assert (own_cache / "backend-times-3.damaged").read_text() == text
    assert timings.known("key") is not None and timings.known("other") is None


def test_bytes_that_are_no_text_are_set_aside(own_cache):
    (own_cache / "backend-times-3.json").write_bytes(b"\xff\xfe\x00")
    with pytest.warns(UserWarning, match="it is no text"):
        assert timings.fastest("key", {"only": taking(0, [])}) == "only"


@pytest.mark.parametrize(
    "entry",
    [
        None,
        {},
        {"first": 1.0},
        choice() | {"seconds": {}},
        choice(first=-1.0),
        choice(first=float("nan")),
        choice(first=1.0) | {"sure": "yes"},
        choice(first=1.0) | {"samples": True},
        choice(first=1.0) | {"failed": None},
    ],
)
def test_a_damaged_entry_is_measured_anew_and_the_others_stay(own_cache, entry):
    save(own_cache, key=entry, other=choice(first=2.0, second=1.0))
    calls: list[float] = []
    candidates = {"first": taking(0, calls), "second": taking(0, calls)}
    timings.fastest("key", candidates)
    assert calls and timings.known("other") == {"first": 2.0, "second": 1.0}


def test_a_folder_that_cannot_be_written_only_forgets(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SNIPER_CACHE_DIR", str(tmp_path / "file" / "below"))
    assert timings.fastest("key", {"only": taking(0, [])}) == "only"


def test_what_another_process_chose_meanwhile_wins(own_cache):
    candidates = {"first": taking(0, []), "second": taking(0.005, [])}
    timings.fastest("other", candidates)
    save(own_cache, key=choice(first=2.0, second=1.0))
    timings.fastest("third", candidates)  # reads and writes the file
    assert timings.fastest("key", candidates) == "second"
    assert set(saved(own_cache)) == {"key", "other", "third"}


def test_forget_drops_memory_and_file(own_cache):
    timings.fastest("key", {"only": taking(0, [])})
    timings.forget()
    assert timings.known("key") is None and not (own_cache / "backend-times-3.json").exists()


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
    assert set(saved(own_cache)) == {"other"}
    assert timings.generation() == start + 1


def test_two_cpus_of_one_name_are_told_apart(monkeypatch):
    names = set()
    for vectors in ("AVX2", "AVX512"):
        monkeypatch.setattr(
            torch.backends.cpu, "get_cpu_capability", lambda vectors=vectors: vectors
        )
        timings.device_name.cache_clear()
        names.add(timings.device_name(torch.device("cpu")))
    timings.device_name.cache_clear()
    assert len(names) == 2


def test_keys_tell_clocks_and_kernels_apart(monkeypatch):
    monkeypatch.setattr(timings, "device_name", lambda device: "Some GPU")
    gpu, cpu = torch.device("cuda", 0), torch.device("cpu")
    host = timings.machine(gpu)
    assert host.endswith("host time") and timings.kernel_revision() in host
    with timings.device_time():
        assert timings.machine(gpu) == host.replace("host time", "device time")
        assert "time" not in timings.machine(cpu) and timings.kernel_revision() in timings.machine(
            cpu
        )
    assert timings.machine(gpu) == host


ONE_OF_TWO = """
import json, sys, time, torch
from sniper.ops import timings

def taking(seconds):
    def run():
        time.sleep(seconds)
        return torch.zeros(1)
    return run

mine = float(sys.argv[1])
chosen = {}
for number in range(20):
    # Each process finds another one fastest.
    candidates = {"first": taking(mine), "second": taking(0.003 - mine)}
    chosen[f"key {number}"] = timings.fastest(f"key {number}", candidates)
again = {key: timings.fastest(key, candidates) for key in chosen}
print(json.dumps([chosen, again]))
"""


def test_two_processes_that_choose_at_once_run_the_same_and_lose_nothing(own_cache):
    both = [
        subprocess.Popen(
            [sys.executable, "-c", ONE_OF_TWO, mine], stdout=subprocess.PIPE, text=True
        )
        for mine in ("0.0005", "0.0025")
    ]
    said = [json.loads(process.communicate(timeout=120)[0]) for process in both]
    (first, first_again), (second, second_again) = said
    assert first == second == first_again == second_again
    assert set(saved(own_cache)) == set(first) and not list(own_cache.glob("*.json.*"))


def test_a_file_of_other_candidates_does_not_come_back(own_cache):
    save(own_cache, key=choice(one=2.0, two=1.0))
    candidates = {"one": taking(0.001, []), "three": taking(0.005, [])}
    assert timings.fastest("key", candidates) == "one"
    start, calls = timings.generation(), []
    candidates = {"one": taking(0, calls), "three": taking(0, calls)}
    assert timings.fastest("key", candidates) == "one"
    assert calls == [] and timings.generation() == start
    assert set(saved(own_cache)["key"]["seconds"]) == {"one", "three"}


def test_a_read_only_folder_is_read(own_cache, monkeypatch):
    save(own_cache, key=choice(first=2.0, second=1.0))

    def refuse(*args, **options):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(pathlib.Path, "write_text", refuse)
    monkeypatch.setattr("builtins.open", refuse)
    assert timings.fastest("key", {"first": taking(0, []), "second": taking(0, [])}) == "second"
    assert timings.fastest("new", {"only": taking(0, [])}) == "only"
    assert timings.known("new") is not None
    monkeypatch.undo()
    monkeypatch.setenv("SNIPER_CACHE_DIR", str(own_cache))
    assert set(saved(own_cache)) == {"key"}


def test_threads_that_measure_at_once(tmp_path, monkeypatch):
    """A served model: each meets sizes that nothing was measured for, and all find a choice."""
    monkeypatch.setenv("SNIPER_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(timings, "_choices", None)
    found, together = [], threading.Barrier(4)

    def work() -> None:
        together.wait()
        for i in range(6):
            calls = {"a": lambda: torch.ones(2), "b": lambda: torch.ones(2)}
            found.append(timings.fastest(f"key {i}", calls))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 24 and set(found) <= {"a", "b"}
    for i in range(6):
        known = timings.known(f"key {i}")
        assert known is not None and set(known) == {"a", "b"}
