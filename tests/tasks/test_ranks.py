"""Several ranks: the sums, the same bits, one that is lost, a signal. Real torchrun and gloo on this machine."""

import json
import os
import re
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
import torch.distributed as dist

from tasks import choices, launch
from tasks.artifacts import Store
from tasks.batches import training_batch
from tasks.errors import DataError, DiskError, InterruptedRun, MaskmillError, MemoryExhausted
from tasks.pretrain import pretrain
from tasks.ranks import Ranks
from tests.tasks import handmade, several_ranks
from tests.tasks.test_training import begun
from tests.tasks.tiny_runs import TINY, partial, trained

TWO = replace(TINY, devices="2", steps=12, checkpoint_every=4, log_every=2, validation_every=6)
EXACT = replace(TWO, reduction="exact", logical_shards=4, micro_tokens=0)


@pytest.fixture(autouse=True)
def _watch_closely(monkeypatch):
    monkeypatch.setattr(launch, "POLL", 0.005)


def ranks_of(process=None):
    """The training processes, by rank; torchrun is between them and this one."""
    found = {}
    for child in (process or psutil.Process()).children(recursive=True):
        try:
            if "tasks.trainer" in child.cmdline() and "RANK" in (environment := child.environ()):
                found[int(environment["RANK"])] = child
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            pass
    return found


def at_step(step, act):
    """A callback that acts, once, when the spool shows a step at or beyond `step`."""
    done = []

    def on_metrics(records):
        if records[-1]["step"] >= step and not done:
            done.append(True)
            act()

    return on_metrics


def curve(manifest):
    return manifest.path("curve.jsonl").read_bytes()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("two"), TWO)


@pytest.fixture(scope="module")
def exact(tmp_path_factory):
    """One rank, S logical shards."""
    return trained(tmp_path_factory.mktemp("exact"), replace(EXACT, devices="1"))


def test_two_ranks_learn_what_one_does(two_ranks, tmp_path):
    one = trained(tmp_path, replace(TWO, devices="1"))
    points = [[json.loads(line) for line in curve(of).splitlines()] for of in (one, two_ranks)]
    for mine, theirs in zip(*points, strict=True):
        assert mine.keys() == theirs.keys() and mine["tokens"] == theirs["tokens"]
        assert all(abs(mine[name] - theirs[name]) < 1e-3 * max(1, abs(mine[name])) for name in mine)
    assert two_ranks.measured()["ranks"] == [[0, 2]] and one.measured()["ranks"] == [[0, 1]]


def test_a_rank_that_is_lost_costs_nothing_but_time(two_ranks, tmp_path):
    killed = []

    def kill():
        killed.append(ranks_of()[1])
        killed[0].kill()

    again = trained(tmp_path, TWO, at_step(6, kill))
    assert killed and again.digest == two_ranks.digest
    assert again.measured()["resumed_at_steps"] and again.measured()["ranks"][0] == [0, 2]


@pytest.mark.slow
def test_a_signal_stops_all_ranks_after_the_same_step(two_ranks, tmp_path, capfd):
    with pytest.raises(InterruptedRun, match="stopped by SIGTERM after step"):
        trained(tmp_path, TWO, at_step(4, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    assert not ranks_of()
    said = capfd.readouterr().err
    assert "Traceback" not in said and "torch/distributed" not in said
    assert trained(tmp_path, TWO).digest == two_ranks.digest


def test_exact_is_the_same_bits_for_one_and_two_ranks_and_for_any_change_between(exact, tmp_path):
    changes = [("2", 4), ("1", 8), ("2", None)]
    for devices, stop in changes:
        config = replace(EXACT, devices=devices)
        if stop:
            with pytest.raises(InterruptedRun):
                trained(tmp_path, config, at_step(stop, lambda: os.kill(os.getpid(), signal.SIGTERM)))
        else:
            last = trained(tmp_path, config)
    assert last.digest == exact.digest and curve(last) == curve(exact)
    worlds = [count for _, count in last.measured()["ranks"]]
    assert worlds[0] == 2 and worlds[-1] == 2


@pytest.mark.slow
@pytest.mark.parametrize("devices", ["2", "4"])
def test_exact_is_the_same_bits_for_every_number_of_ranks(exact, tmp_path, devices):
    assert trained(tmp_path, replace(EXACT, devices=devices)).digest == exact.digest


@pytest.mark.slow
def test_a_change_of_ranks_goes_on_with_the_same_samples_and_masks(two_ranks, tmp_path):
    with pytest.raises(InterruptedRun):
        trained(tmp_path, TWO, at_step(4, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    last = trained(tmp_path, replace(TWO, devices="1"))
    assert last.facts["tokens"] == two_ranks.facts["tokens"]
    mine, theirs = (json.loads(curve(of).splitlines()[-1]) for of in (last, two_ranks))
    assert abs(mine["train/loss"] - theirs["train/loss"]) < 1e-2


def test_why_a_rank_ends_is_told_and_torchrun_does_not_try_again(tmp_path, capfd):
    store = Store(tmp_path)
    shards = handmade.shards(store)
    path = shards.path("train-00000.arrow")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"train-00000\.arrow is damaged"):
        pretrain(TWO, handmade.vocabulary(store), shards, store)
    assert capfd.readouterr().err.count("train-00000") <= 2  # by each rank once at most


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rank", "how", "error", "words", "attempts"),
    [
        (
            1,
            "TypeError",
            MaskmillError,
            r"TypeError: a bug of ours \(traceback above\); .* goes on from the checkpoint after step 4\.$",
            1,
        ),
        pytest.param(0, "memory", MemoryExhausted, "smaller pretrain.micro_tokens", 1, marks=pytest.mark.slow),
        pytest.param(1, "compiler", MaskmillError, "no code for this operation .traceback", 1, marks=pytest.mark.slow),
        pytest.param(
            1,
            "device",
            MaskmillError,
            r"a rank failed \(AcceleratorError: CUDA error: unspecified launch failure\), and pretrain\.restarts \(1\) "
            r"are used up; run again to go on from the checkpoint after step 4\.$",
            2,
            marks=pytest.mark.slow,
        ),
        pytest.param(1, "kill", MemoryExhausted, "killed .*want of memory", 2, marks=pytest.mark.slow),
    ],
)
def test_a_rank_that_fails_in_a_step_ends_the_others_within_seconds(
    two_ranks, tmp_path, monkeypatch, capfd, rank, how, error, words, attempts
):
    """Not after pretrain.rank_timeout, for which the others would wait. And what failed can be gone on with."""
    command = launch.command

    def failing(job, config):
        return [word.replace("tasks.trainer", "tests.tasks.failing_trainer") for word in command(job, config)]

    config = replace(TWO, restarts=1, rank_timeout=300.0)
    monkeypatch.setenv("FAIL", json.dumps({"rank": rank, "step": 6, "error": how}))
    monkeypatch.setattr(launch, "command", failing)
    ended = []
    monkeypatch.setattr(launch, "outcome", lambda *given, call=launch.outcome: ended.append(failed()) or call(*given))

    def failed():
        return [float(one) for one in re.findall(r"fails at ([\d.]+)", capfd.readouterr().err)], time.time()

    with pytest.raises(error, match=words) as caught:
        trained(tmp_path, config)
    ((failures, end),) = ended
    assert type(caught.value) is error and len(failures) == attempts
    assert end - failures[-1] < 100  # 3 on a quiet machine; a second attempt has to be started first
    print(f"the last rank had ended {end - failures[-1]:.1f} s after the failure")
    assert not ranks_of() and launch.kept(partial(tmp_path) / ".scratch").endswith("after step 4")
    if attempts == 1 and rank == 1:
        monkeypatch.setattr(launch, "command", command)
        again = trained(tmp_path, config)
        assert again.digest == two_ranks.digest and again.measured()["resumed_at_steps"] == [4]


@pytest.mark.slow
def test_a_full_disk_of_the_first_rank_ends_all(tmp_path):
    store = Store(tmp_path)
    vocabulary, shards = handmade.vocabulary(store), handmade.shards(store)

    def limit():
        ranks_of()[0].rlimit(psutil.RLIMIT_FSIZE, (1000, 1000))

    with pytest.raises(DiskError, match=r"No space left for .*\.partial/measured.* finished steps are kept"):
        pretrain(TWO, vocabulary, shards, store, at_step(2, limit))


@pytest.mark.slow
def test_slices_of_the_model_learn_what_whole_ones_do_and_go_on_with_another_world(two_ranks, tmp_path):
    sliced = replace(TWO, parallel="fsdp")
    with pytest.raises(InterruptedRun):
        trained(tmp_path, sliced, at_step(4, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    last = trained(tmp_path, replace(sliced, devices="1"))
    for mine, theirs in zip(
        *([json.loads(line) for line in curve(of).splitlines()] for of in (last, two_ranks)), strict=True
    ):
        assert abs(mine["train/loss"] - theirs["train/loss"]) < 1e-2
    assert [count for _, count in last.measured()["ranks"]] == [2, 1]


@pytest.mark.slow
def test_slices_of_the_model_give_the_same_bits_twice(tmp_path):
    sliced = replace(TWO, parallel="fsdp")
    assert trained(tmp_path / "one", sliced).digest == trained(tmp_path / "two", sliced).digest


@pytest.mark.slow
def test_two_nodes_on_one_machine_meet(two_ranks, tmp_path):
    import socket
    import subprocess
    import threading

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = replace(TWO, devices="1", nodes="2", rendezvous=f"127.0.0.1:{port}")
    joined = []

    def join():
        deadline = 60
        while deadline and not (jobs := list(Path(tmp_path, "pretrain").glob(".*.partial/.scratch/job.json"))):
            deadline -= 1
            threading.Event().wait(1)
        script = f"from pathlib import Path; from tasks import launch; launch.join(Path({str(jobs[0])!r}))"
        joined.append(subprocess.Popen([sys.executable, "-c", script], cwd=Path(__file__).parents[2]))

    thread = threading.Thread(target=join)
    thread.start()
    made = trained(tmp_path, config)
    thread.join()
    assert joined[0].wait(60) == 0
    assert made.files["model/model.safetensors"] == two_ranks.files["model/model.safetensors"]


def gradients(folder, parallel, first, **shards):
    """Of one step of 5 rows, two at a time, from sample `first` on: of all ranks together, and of one alone.

    The first rank has 2 of the rows and the other one 3.
    """
    config = replace(TINY, batch_tokens=5 * 32, micro_tokens=2 * 32, clip=1e9, parallel=parallel)
    ranks = Ranks(torch.device("cpu"), dist.get_rank(), dist.get_world_size())
    found = []
    for one in (ranks, Ranks(torch.device("cpu"))):
        run = begun(folder / f"{parallel}-{first}-{one.count}-{dist.get_rank()}", config, ranks=one, **shards)
        run.optimizers.step = lambda: None
        run.timeline.at = lambda step, at=run.timeline.at: at(step)._replace(first=first)
        run.take_step()
        whole = [getattr(one.grad, "full_tensor", lambda one=one: one.grad)() for one in run.model.parameters()]
        found.append((run, whole))
    return found


def uneven(folder):
    """Rows of uneven counts, and a second rank that has none to predict: it has a gradient of zeros to give."""
    for parallel in ("ddp", "fsdp"):
        # from sample 1 on the first rank's rows have a token to predict each, and the other's have none
        for first, rate, counts in ((0, "0.3", None), (1, "0.04", {0: 2, 1: 0})):
            (run, mine), (alone, whole) = gradients(folder, parallel, first, rate=rate)
            assert max(float(one.abs().max()) for one in whole) > 1e-3
            assert all((a - b).abs().max() < 1e-6 for a, b in zip(mine, whole, strict=True)), (parallel, rate)
            assert run.points.sums.masked[0] == alone.points.sums.masked[0] > 0
            assert abs(run.points.sums.nll[0] - alone.points.sums.nll[0]) < 1e-4
            batch = training_batch(run.readers[0], first, 5, 0, rate=rate, part=dist.get_rank(), parts=2)
            assert counts is None or batch.count == counts[dist.get_rank()]


def test_ranks_that_have_uneven_counts_or_none_have_the_gradient_of_one_process(tmp_path):
    several_ranks.run(uneven, tmp_path)


def too_little_memory(folder):
    """For all rows at once: all ranks then take half of them. One that comes alone to `together` learns that it is."""
    ranks = Ranks(torch.device("cpu"), dist.get_rank(), dist.get_world_size())
    run = begun(folder / str(ranks.rank), replace(TINY, micro_tokens=0), ranks=ranks)
    backward, tried = run.gradients._backward, []

    def failing(gradients, micro, count, watch):
        tried.append(len(micro.tokens_BL))
        if tried[-1] > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return backward.__func__(gradients, micro, count, watch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(run.gradients), "_backward", failing)
        patch.setattr(torch.cuda, "empty_cache", lambda: None)
        assert choices._that_fits(run, choices.Chosen()).micro_tokens == 4 * 32
        assert tried[0] == 8 and set(tried[1:]) == {4}
        began = time.monotonic()
        assert ranks.together(60)
        if ranks.rank:
            assert not ranks.together(0.1)
        dist.barrier()
    assert time.monotonic() - began < 30


def test_ranks_that_all_lack_memory_take_fewer_rows_and_one_that_fails_alone_knows_it(tmp_path):
    several_ranks.run(too_little_memory, tmp_path)
