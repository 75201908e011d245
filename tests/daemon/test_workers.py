"""The worker pool answers for every file, and no file can take another one or the service with it."""

import contextlib
import os
import pathlib
import signal
import sys

import anyio
import msgspec
import pytest

from ckptd.daemon.answers import Death
from ckptd.daemon.workers import PoolClosed, WorkerDied, finding_for
from ckptd.daemon.zygote_process import ZygoteError
from ckptd.validators.errors import Changed, Unreadable
from ckptd.validators.findings import Severity

from .worker_jobs import COMMAND, FORBIDDEN, opened
from .worker_pools import at_work, children_of, describe, descriptors_of, make_pool, until

pytestmark = pytest.mark.anyio


async def _death_of(pool, path: pathlib.Path, text: str) -> WorkerDied:
    with pytest.raises(WorkerDied) as caught:
        await describe(pool, path, text)
    return caught.value


async def test_a_description_comes_back_as_it_was_made(tmp_path: pathlib.Path) -> None:
    async with make_pool() as pool:
        with opened(tmp_path / "a.ckpt", "tensors 2500", config="lr: 1") as (request, files):
            description = await pool.describe(request, files)
    assert description.config == "lr: 1"
    assert description.inspection.checkpoint_path == str(tmp_path / "a.ckpt")
    assert description.inspection.identity.size == len("tensors 2500")
    assert [tensor.shape[1] for tensor in description.tensors] == list(range(2500))


async def test_sidecars_and_config_reach_the_job_in_their_order(tmp_path: pathlib.Path) -> None:
    with contextlib.ExitStack() as stack:
        request, files = stack.enter_context(opened(tmp_path / "a.ckpt", "ok", config="c"))
        _, long = stack.enter_context(opened(tmp_path / "b", "ok" * 3))
        _, short = stack.enter_context(opened(tmp_path / "c", "ok" * 5))
        files = msgspec.structs.replace(files, sidecars=(long.checkpoint, short.checkpoint))
        request = msgspec.structs.replace(request, sidecar_names=(b"b", b"c"))
        async with make_pool() as pool:
            description = await pool.describe(request, files)
    assert description.user == {"b": 6, "c": 10}
    assert description.config == "c"


async def test_a_path_that_is_not_utf8_comes_back_escaped(tmp_path: pathlib.Path) -> None:
    with opened(tmp_path / "a.ckpt", "ok") as (request, files):
        request = msgspec.structs.replace(request, checkpoint_path=os.fsdecode(b"/runs/\xff.ckpt"))
        async with make_pool() as pool:
            description = await pool.describe(request, files)
    assert description.inspection.checkpoint_path == "/runs/\\xff.ckpt"


async def test_what_the_reader_says_arrives_as_the_same_exception(tmp_path: pathlib.Path) -> None:
    async with make_pool() as pool:
        with pytest.raises(Changed, match="grew"):
            await describe(pool, tmp_path / "a.ckpt", "changed grew")
        with pytest.raises(Unreadable, match="broken disk") as caught:
            await describe(pool, tmp_path / "a.ckpt", "unreadable broken disk")
        assert caught.value.errno == 5


@pytest.mark.parametrize(
    ("text", "how", "code"),
    [
        ("crash", Death.CRASHED, "worker.crashed"),
        ("exit 3", Death.CRASHED, "worker.crashed"),
        ("exit 0", Death.BAD_ANSWER, "worker.crashed"),
        ("raise x", Death.BAD_ANSWER, "worker.crashed"),
        ("eat", Death.LIMIT_MEMORY, "pickle.limits"),
        ("deny", Death.LIMIT_MEMORY, "pickle.limits"),
        ("large 50000000", Death.ANSWER_TOO_LARGE, "pickle.limits"),
        ("many 40", Death.ANSWER_TOO_LARGE, "pickle.limits"),
        ("tensors 60000", Death.ANSWER_TOO_LARGE, "pickle.limits"),
        ("flood", Death.ANSWER_TOO_LARGE, "pickle.limits"),
        ("deep 5000", Death.BAD_ANSWER, "worker.crashed"),
        ("garbage ffffffffff", Death.BAD_ANSWER, "worker.crashed"),
        ("garbage 02000000c1c1", Death.BAD_ANSWER, "worker.crashed"),
        ("garbage 0100000080", Death.BAD_ANSWER, "worker.crashed"),
        ("forge 18446744073709551615", Death.BAD_ANSWER, "worker.crashed"),
    ],
)
async def test_each_way_to_fail_has_its_name_and_the_next_file_is_answered(
    tmp_path: pathlib.Path, text: str, how: Death, code: str
) -> None:
    async with make_pool(workers=1) as pool:
        death = await _death_of(pool, tmp_path / "bad.ckpt", text)
        assert death.how is how
        finding = finding_for(death)
        assert finding.code == code
        assert finding.severity is Severity.ERROR
        assert death.detail in finding.message
        await describe(pool, tmp_path / "good.ckpt", "ok")


async def test_a_child_that_never_ends_is_ended_at_the_time_limit(tmp_path: pathlib.Path) -> None:
    async with make_pool(timeout_s=0.2) as pool:
        death = await _death_of(pool, tmp_path / "bad.ckpt", "hang")
    assert death.how is Death.LIMIT_WALL
    assert "SIGALRM" in death.detail


async def test_a_stopped_child_is_ended_by_the_pool(tmp_path: pathlib.Path) -> None:
    async with make_pool(timeout_s=0.5) as pool, anyio.create_task_group() as tasks:
        tasks.start_soon(_expect_death, pool, tmp_path / "bad.ckpt", Death.LIMIT_WALL)
        await until(lambda: bool(at_work(pool.zygote_pid)), "a child runs")
        os.kill(at_work(pool.zygote_pid)[0], signal.SIGSTOP)


async def _expect_death(pool, path: pathlib.Path, how: Death) -> None:
    assert (await _death_of(pool, path, "wait")).how is how


@pytest.mark.parametrize("attempt", FORBIDDEN)
async def test_what_parsing_never_needs_ends_the_child(tmp_path: pathlib.Path, attempt: str) -> None:
    async with make_pool(workers=1) as pool:
        if pool.sandbox != "full":
            pytest.skip(f"no sandbox on this machine: {pool.sandbox}")
        death = await _death_of(pool, tmp_path / "bad.ckpt", attempt)
        assert death.how is Death.FORBIDDEN
        assert finding_for(death).code == "worker.crashed"
        assert pool.zygote_pid is not None
        await describe(pool, tmp_path / "good.ckpt", "ok")


async def test_a_child_holds_the_job_s_descriptors_and_no_other(tmp_path: pathlib.Path) -> None:
    async with make_pool() as pool:
        description = await describe(pool, tmp_path / "a.ckpt", "descriptors")
    null, own = "/dev/null", ["file", "pipe", "file"]
    assert description.config == [null] * 3 + own


async def test_one_bad_file_among_many_fails_alone(tmp_path: pathlib.Path) -> None:
    """Batches share a child; the file under way when it dies is the only one that is lost."""
    answered: list[str] = []
    died: list[str] = []

    async def one(name: str, text: str) -> None:
        try:
            await describe(pool, tmp_path / name, text)
        except WorkerDied:
            died.append(name)
        else:
            answered.append(name)

    async with make_pool() as pool:
        async with anyio.create_task_group() as tasks:
            for index in range(100):
                bad = {20: "crash", 50: "exit 9", 51: "eat", 80: "raise x"}.get(index, "ok")
                tasks.start_soon(one, f"{index}.ckpt", bad)
        assert sorted(died) == ["20.ckpt", "50.ckpt", "51.ckpt", "80.ckpt"]
        assert len(answered) == 96
        assert pool.in_flight == pool.queued == 0


async def test_files_behind_a_slow_one_do_not_wait_for_it(tmp_path: pathlib.Path) -> None:
    answered: list[int] = []
    slow_answers: list[str] = []

    async def slow() -> None:
        slow_answers.append((await describe(pool, tmp_path / "slow.ckpt", "wait")).inspection.checkpoint_path)

    async def quick(index: int) -> None:
        await describe(pool, tmp_path / f"{index}.ckpt", "ok")
        answered.append(index)

    async with make_pool() as pool, anyio.create_task_group() as tasks:
        tasks.start_soon(slow)
        for index in range(40):
            tasks.start_soon(quick, index)
        await until(lambda: len(answered) == 40, "all quick files are answered")
        assert slow_answers == []
        (tmp_path / "slow.ckpt").write_text("done")
    assert slow_answers == [str(tmp_path / "slow.ckpt")]


async def test_a_killed_child_s_file_is_tried_once_more(tmp_path: pathlib.Path) -> None:
    """The kernel, out of memory, may have taken the wrong one."""
    outcome: list[str] = []

    async def wait() -> None:
        outcome.append((await describe(pool, tmp_path / "a.ckpt", "wait")).inspection.checkpoint_path)

    async with make_pool() as pool, anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await until(lambda: bool(at_work(pool.zygote_pid)), "a child runs")
        first = at_work(pool.zygote_pid)
        os.kill(first[0], signal.SIGKILL)
        await until(lambda: at_work(pool.zygote_pid) not in ([], first), "another child runs")
        await describe(pool, tmp_path / "b.ckpt", "ok")
        (tmp_path / "a.ckpt").write_text("done")
    assert outcome == [str(tmp_path / "a.ckpt")]


async def test_a_file_whose_children_are_killed_is_given_up(tmp_path: pathlib.Path) -> None:
    given_up = anyio.Event()

    async def wait() -> None:
        await _expect_death(pool, tmp_path / "bad.ckpt", Death.KILLED)
        given_up.set()

    def killed_until_given_up() -> bool:
        for child in at_work(pool.zygote_pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        return given_up.is_set()

    async with make_pool() as pool, anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await until(killed_until_given_up, "the file is given up")
        assert pool.crashes >= 2


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
async def test_a_dead_zygote_is_replaced_and_its_files_are_tried_again(
    tmp_path: pathlib.Path, how: signal.Signals
) -> None:
    outcome: list[str] = []

    async def wait(name: str) -> None:
        await describe(pool, tmp_path / name, "wait")
        outcome.append(name)

    async with make_pool() as pool, anyio.create_task_group() as tasks:
        tasks.start_soon(wait, "a.ckpt")
        tasks.start_soon(wait, "b.ckpt")
        zygote = pool.zygote_pid
        await until(lambda: len(at_work(zygote)) == 2, "both children run")
        os.kill(zygote, how)
        await until(lambda: pool.zygote_pid not in (None, zygote), "another zygote is there")
        await until(lambda: len(at_work(pool.zygote_pid)) == 2, "its children have taken over both files")
        (tmp_path / "a.ckpt").write_text("done")
        (tmp_path / "b.ckpt").write_text("done")
    assert sorted(outcome) == ["a.ckpt", "b.ckpt"]


async def test_a_file_that_loses_two_zygotes_is_given_up(tmp_path: pathlib.Path) -> None:
    async with make_pool() as pool, anyio.create_task_group() as tasks:
        tasks.start_soon(_expect_death, pool, tmp_path / "bad.ckpt", Death.KILLED)
        for _ in range(2):
            await until(lambda: pool.zygote_pid and bool(at_work(pool.zygote_pid)), "a child runs")
            os.kill(pool.zygote_pid, signal.SIGKILL)
            dead = pool.zygote_pid
            await until(lambda dead=dead: pool.zygote_pid not in (None, dead), "another zygote is there")


async def test_a_stuck_zygote_is_replaced(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ckptd.daemon.workers.ZYGOTE_GRACE_S", 0.2)
    monkeypatch.setattr("ckptd.daemon.workers.GRACE_S", 0.2)
    async with make_pool(timeout_s=0.2) as pool:
        os.kill(pool.zygote_pid, signal.SIGSTOP)
        await describe(pool, tmp_path / "a.ckpt", "ok")


async def test_no_descriptor_is_left_after_a_thousand_files(tmp_path: pathlib.Path) -> None:
    def open_now() -> tuple[int, int]:
        return descriptors_of(os.getpid()), descriptors_of(pool.zygote_pid)

    async with make_pool(workers=1) as pool:
        await describe(pool, tmp_path / "a.ckpt", "ok")
        before = open_now()
        with opened(tmp_path / "a.ckpt", "ok") as (request, files), opened(tmp_path / "b.ckpt", "crash") as (bad, its):
            async with anyio.create_task_group() as tasks:
                for _ in range(1000):
                    tasks.start_soon(pool.describe, request, files)
            for _ in range(20):
                with pytest.raises(WorkerDied):
                    await pool.describe(bad, its)
        few = 8  # what a child that has just ended, or waits ahead, may still hold
        await until(
            lambda: all(now < then + few for now, then in zip(open_now(), before, strict=True)),
            f"not many more than {before} descriptors are open",
        )


async def test_who_stops_waiting_may_close_its_files(tmp_path: pathlib.Path) -> None:
    """Cancelled calls leave nothing behind, neither in the queue nor for the next file with that descriptor."""
    async with make_pool(workers=1) as pool:
        async with anyio.create_task_group() as tasks:
            for index in range(50):
                tasks.start_soon(describe, pool, tmp_path / f"{index}.ckpt", "wait")
            await until(lambda: bool(at_work(pool.zygote_pid)), "a child runs")
            for index in range(50):
                (tmp_path / f"{index}.ckpt").write_text("done")
            tasks.cancel_scope.cancel()
        assert pool.queued == pool.in_flight == 0
        await describe(pool, tmp_path / "a.ckpt", "ok")


async def test_callers_are_told_when_the_pool_ends(tmp_path: pathlib.Path) -> None:
    told: list[type[BaseException]] = []

    async def wait() -> None:
        with pytest.raises(PoolClosed) as caught:
            await describe(pool, tmp_path / "a.ckpt", "wait")
        told.append(caught.type)

    async with anyio.create_task_group() as tasks, make_pool() as pool:
        tasks.start_soon(wait)
        await until(lambda: bool(at_work(pool.zygote_pid)), "a child runs")
    assert told == [PoolClosed]
    with pytest.raises(PoolClosed):
        await describe(pool, tmp_path / "a.ckpt", "ok")


async def test_a_caller_s_own_error_leaves_the_pool_as_it_is() -> None:
    with pytest.raises(LookupError, match="mine"):
        async with make_pool():
            raise LookupError("mine")


async def test_children_that_die_while_they_wait_are_no_loss(tmp_path: pathlib.Path) -> None:
    async with make_pool() as pool:
        await until(lambda: len(children_of(pool.zygote_pid)) == 2, "children wait ahead")
        for child in children_of(pool.zygote_pid):
            os.kill(child, signal.SIGKILL)
        await describe(pool, tmp_path / "a.ckpt", "ok")


async def test_a_zygote_that_is_killed_while_it_starts_is_replaced(tmp_path: pathlib.Path) -> None:
    """By an administrator, or by the kernel for want of memory: no reason for the service to end."""
    mark = tmp_path / "started"
    killed_once = (
        "import os, pathlib, signal, sys; mark = pathlib.Path(sys.argv[1]); first = not mark.exists(); mark.touch(); "
        "first and os.kill(os.getpid(), signal.SIGKILL); os.execv(sys.argv[2], sys.argv[2:])"
    )
    command = [sys.executable, "-I", "-c", killed_once, str(mark), *COMMAND]
    async with make_pool(command=command) as pool:
        await describe(pool, tmp_path / "a.ckpt", "ok")


async def test_a_zygote_that_cannot_start_says_why() -> None:
    with pytest.raises(ZygoteError, match="no such luck"):
        async with make_pool(command=[sys.executable, "-I", "-c", "raise SystemExit('no such luck')"]):
            pass
    with pytest.raises(ZygoteError, match="/nowhere/python cannot be started"):
        async with make_pool(command=["/nowhere/python"]):
            pass
