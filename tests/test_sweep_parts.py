"""The pure parts of a sweep: what is shown, who runs again, who comes next, how many at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from kalavai_nb.state import Device, Need, Report, Trial, TrialState, brief
from kalavai_nb.trials.display import DEVICE_LINES, ERROR_LINES, LINE_CHARACTERS, describe, duration, spark
from kalavai_nb.trials.failures import MOST_SHOWN, failures
from kalavai_nb.trials.judge import DEATHS, Job, again
from kalavai_nb.trials.slots import MOST_AT_ONCE, Pace, Slot
from kalavai_nb.trials.trial_list import MOST_REPORTS, TrialList
from kalavai_nb.trials.trial_queue import TrialQueue

GIB = 2**30
NEED = Need("me", 1, kind="trial", what="sweep x")


def device(number: int, gib: int = 8) -> Device:
    return Device(f"d{number}", number, "cuda", f"GPU of {gib}", "box", "m0", gib * GIB, worker=f"w{number}")


def trials(*states: TrialState, metric: str | None = None, mode: str = "min", **fields: Any) -> TrialList:
    found = TrialList(metric, mode)
    for number, state in enumerate(states):
        found.append(number, state=state, **fields)
    return found


def text_of(some: TrialList, planned: int = 0, **options: Any) -> str:
    return describe("s", some, planned or len(some), **{"seconds": 10.0, **options}).text()


# what is shown


def test_a_sweep_is_told_with_its_progress_and_time_left() -> None:
    some = trials(TrialState.FAILED, TrialState.RUNNING, TrialState.WAITING, TrialState.WAITING, device="box cuda:0")
    first, *rest = text_of(some).splitlines()
    assert first == f"s [{'█' * 7}{'·' * 23}] 1/4: 2 waiting, 1 running, 1 failed; 10.0 s; about 30.0 s left"
    assert rest == ["  box cuda:0: trial 1"]


def test_what_was_done_before_does_not_count_as_speed() -> None:
    some = trials(*[TrialState.COMPLETE] * 3, TrialState.WAITING)
    assert "2 from before; 10.0 s; about 10.0 s left" in text_of(some, had=2)


def test_a_sweep_that_is_done_or_has_not_begun_has_no_time_left() -> None:
    assert text_of(trials(TrialState.PRUNED)) == f"s [{'█' * 30}] 1/1: 1 pruned; 10.0 s"
    assert "left" not in text_of(trials(TrialState.WAITING))
    assert text_of(TrialList(), 7).startswith(f"s [{'·' * 30}] 0/7")


def test_trials_that_were_stopped_are_still_to_be_done() -> None:
    assert "1/3: 1 complete, 2 stopped" in text_of(trials(TrialState.COMPLETE, TrialState.STOPPED, TrialState.STOPPED))


def test_a_sweep_of_any_size_is_a_few_lines() -> None:
    some = trials(*[TrialState.RUNNING] * 100, device="box cuda:0", metric=None)
    for number in range(100):
        some.append("c" * 500, state=TrialState.FAILED, error=ValueError(str(number) * 200))
    some.append({"lr": 1}, state=TrialState.COMPLETE, value=3.0)
    lines = text_of(some, note="the journal cannot be written (disk full)").splitlines()
    assert len(lines) == 1 + 1 + 1 + DEVICE_LINES + 1 + ERROR_LINES + 1
    assert len(lines) <= 25
    assert all(len(line) <= LINE_CHARACTERS + 2 for line in lines)
    assert lines[1] == "  the journal cannot be written (disk full)"
    assert lines[2] == "  best: trial 200, 3 with lr=1"
    assert f"  and {100 - DEVICE_LINES} more running" in lines
    assert lines[-1] == f"  and {100 - ERROR_LINES} more kinds of error"


def test_equal_errors_are_folded() -> None:
    assert text_of(trials(*[TrialState.FAILED] * 3, error=ValueError("bad\nand more"))).endswith("3 × ValueError: bad")


def test_a_running_trial_shows_its_curve() -> None:
    some = trials(TrialState.RUNNING, device="box cuda:0", metric="loss")
    for step in range(8):
        some.add_report(0, Report(step, {"loss": 8.0 - step, "other": 0}))
    assert text_of(some, metrics=("loss",)).endswith("box cuda:0: trial 0  █▇▆▅▄▃▂▁ loss=1 at step 7")


def test_sparks() -> None:
    assert spark([]) == ""
    assert spark([1.0]) == "▁"
    assert spark([2.0, 2.0]) == "▁▁"
    assert spark([0.0, float("nan"), 1.0]) == "▁ █"
    assert len(spark([float(n) for n in range(1000)])) <= 16
    assert spark([0.0, float("inf"), 1.0]) == "▁ █"


def test_names_cannot_write_html() -> None:
    some = trials(TrialState.FAILED, error=ValueError("<script>"))
    assert "<script>" not in describe("<b>x", some, 1, seconds=1.0, note="<i>").html()
    assert "&lt;script&gt;" in describe("<b>x", some, 1, seconds=1.0).html()


@pytest.mark.parametrize(
    ("seconds", "text"), [(8.44, "8.4 s"), (59.99, "60.0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_many_failures_are_a_short_text() -> None:
    bad = [Trial(n, TrialState.FAILED, n, error=ValueError(n % 40)) for n in range(1000)]
    text = failures("train", 2000, bad)
    assert text.startswith("1000 of 2000 trials of train have no value.\ntrials 0,40,80")
    assert len(text.splitlines()) == 1 + MOST_SHOWN + 1 + 1
    assert text.endswith("sweep[0].log what trial 0 printed.")


def test_values_are_told_briefly() -> None:
    assert brief({"lr": 0.123456789, "layers": [1, 2]}) == "lr=0.12346, layers=[1, 2]"
    assert len(brief({str(n): "x" * 100 for n in range(100)})) <= 200


# all trials


def test_the_best_is_kept_up_as_trials_change() -> None:
    some = trials(*[TrialState.WAITING] * 4, metric="loss", mode="max")
    assert some.best is None
    for index, loss in enumerate((1.0, 3.0, float("nan"), 2.0)):
        some.change({index: {"state": TrialState.COMPLETE, "value": {"loss": loss}}})
    assert some.best
    assert some.best.index == 1


def test_counts_follow_every_change() -> None:
    some = trials(TrialState.WAITING, TrialState.WAITING)
    some.change({0: {"state": TrialState.RUNNING}})
    assert list(some.running) == [0]
    some.change({0: {"state": TrialState.FAILED, "error": ValueError("x")}, 1: {"state": TrialState.COMPLETE}})
    assert not some.running
    assert some.ended == 2
    some.change({0: {"state": TrialState.WAITING, "error": None}})
    assert some.ended == 1
    assert +some.reasons == {}


def test_a_long_curve_is_thinned() -> None:
    some = trials(TrialState.RUNNING)
    for step in range(3 * MOST_REPORTS):
        some.add_report(0, Report(step, {"loss": 1.0}))
    steps = [report.step for report in some[0].reports]
    assert len(steps) <= MOST_REPORTS
    assert steps[0] == 0
    assert steps[-1] == 3 * MOST_REPORTS - 1
    assert steps == sorted(steps)


# who runs again


def test_a_lost_worker_costs_one_more_attempt_a_few_times_and_a_checkpoint_renews_it() -> None:
    lost = {"status": "lost", "how": "…"}
    job = Job(NEED)
    for deaths in range(1, DEATHS + 1):
        found = again(job, lost, 0, [device(0)], lambda: [])
        assert found
        job = found
        assert job.deaths == deaths
    assert again(job, lost, 0, [device(0)], lambda: []) is None
    assert again(job.renewed(), lost, 0, [device(0)], lambda: [])


def test_a_failure_is_tried_again_as_often_as_was_asked() -> None:
    job = Job(NEED)
    for _ in range(2):
        found = again(job, {"status": "error"}, 2, [device(0)], lambda: [])
        assert found
        job = found
    assert again(job, {"status": "error"}, 2, [device(0)], lambda: []) is None


def test_out_of_memory_means_a_whole_device_then_a_larger_one_then_the_end() -> None:
    end, devices = {"status": "error", "gpu_out_of_memory": True}, [device(0), device(1, gib=24)]
    whole = again(Job(replace(NEED, share=0.5)), end, 0, [device(0)], lambda: devices)
    assert whole
    assert whole.need.share == 1.0
    larger = again(whole, end, 0, [device(0)], lambda: devices)
    assert larger
    assert [d.id for d in devices if larger.need.fits(d)] == ["d1"]
    assert "ran out of GPU memory on GPU of 8 (8 GiB); ran again on a larger device" in larger.note
    assert again(larger, end, 0, [device(1, gib=24)], lambda: devices) is None


# who comes next


def test_those_that_went_wrong_come_last() -> None:
    queue = TrialQueue()
    queue.put(0, Job(NEED, failures=1))
    queue.put(2, Job(NEED))
    queue.put(1, Job(NEED))
    other = replace(NEED, share=0.5)
    queue.put(3, Job(other))
    queue.put(4, Job(NEED))
    queue.take_out(4)
    assert set(queue.needs()) == {NEED, other}
    order = []
    while (found := queue.pop(NEED)) is not None:
        order.append(found[0])
    assert order == [1, 2, 0]
    assert len(queue) == 1


def test_a_trial_that_was_lost_with_its_machine_has_its_old_place_once() -> None:
    queue = TrialQueue()
    for index in range(2, 5):
        queue.put(index, Job(NEED))
    queue.put(0, Job(NEED, deaths=2))
    queue.put(1, Job(NEED, deaths=1))
    assert [found[0] for _ in range(4) if (found := queue.pop(NEED))] == [1, 2, 3, 4]
    assert queue.pop(NEED) == (0, Job(NEED, deaths=2)), "lost again: it may be what takes workers with it"


def test_a_trial_that_is_put_again_with_another_need_has_left_its_old_place() -> None:
    queue, other = TrialQueue(), replace(NEED, share=0.5)
    queue.put(0, Job(NEED))
    queue.put(0, Job(other))
    assert queue.pop(NEED) is None
    assert queue.pop(other) == (0, Job(other))


# how many at a time


def test_short_trials_go_in_batches_and_long_ones_alone() -> None:
    slot = Slot("l", (device(0),), NEED)
    pace = Pace()
    assert pace.at_once() == 1
    pace.add(slot, 1e-4)
    assert pace.at_once() == MOST_AT_ONCE
    for _ in range(40):
        pace.add(slot, 0.3)
    assert pace.at_once() == 1


def test_the_fastest_devices_are_known_and_stragglers_too() -> None:
    pace = Pace()
    assert not pace.straggles(1e9)
    for number, seconds in ((0, 3.0), (1, 1.0), (2, 2.0)):
        pace.add(Slot("l", (device(number),), NEED), seconds)
    assert pace.fastest() == ("d1", "d2", "d0")
    assert pace.straggles(3.5)
    assert not pace.straggles(2.5)
