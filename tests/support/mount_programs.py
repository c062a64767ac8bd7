"""Programs that embed statsfs, each written as such a program is; run by `test_mount_programs`.

Each is a function of a mount point. It prints what it sees, and ends in its own way.
"""

import asyncio
import os
import signal
import sys
import threading
import time
from typing import NoReturn

import trio

from statsfs.filesystem.mounting import mount, mounted
from statsfs.tree.registry import Registry
from tests.support.mounts import is_mounted
from tests.support.trees import add_cpu, make_kvm, subordinate


def look(mountpoint: str) -> list[str]:
    """Look at one's own mount."""
    with open(f"{mountpoint}/kvm/exits") as file:
        return [*sorted(os.listdir(mountpoint)), file.read().strip()]


def make() -> Registry:
    """Make a tree."""
    registry = Registry()
    make_kvm(registry)
    return registry


def plain(mountpoint: str) -> None:
    """Mount, count, look at it from the main thread, unmount."""
    registry = make()
    with mount(registry, mountpoint):
        cpu = add_cpu(registry.sources[0], "cpu2")
        for _ in range(1000):
            cpu.exits += 1
        print(look(mountpoint))
    print(is_mounted(mountpoint))


def with_asyncio(mountpoint: str) -> None:
    """Mount in an asyncio program; look from its loop and from a thread."""

    async def main() -> None:
        with mount(make(), mountpoint):
            print(look(mountpoint))
            print(await asyncio.to_thread(look, mountpoint))
            process = await asyncio.create_subprocess_exec("cat", f"{mountpoint}/kvm/exits")
            await process.wait()

    asyncio.run(main())
    print(is_mounted(mountpoint))


def with_threads(mountpoint: str) -> None:
    """Mount in one thread, count in others, close in yet another."""
    registry, mounts = make(), []
    opening = threading.Thread(target=lambda: mounts.append(mount(registry, mountpoint)))
    opening.start()
    opening.join()
    workers = [
        threading.Thread(target=lambda n=n: add_cpu(registry.sources[0], f"more{n}"))
        for n in range(5)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    print(len(os.listdir(f"{mountpoint}/kvm")))
    closing = threading.Thread(target=mounts[0].close)
    closing.start()
    closing.join()
    print(is_mounted(mountpoint))


def with_trio(mountpoint: str) -> None:
    """Mount in a trio program, and change the tree from its own thread."""

    async def main() -> None:
        registry = make()
        async with mounted(registry, mountpoint) as live:
            kvm = registry.sources[0]
            print(await trio.to_thread.run_sync(look, mountpoint), live)
            for _ in range(100):
                add_cpu(kvm, "passing").exits = 7
                assert (await trio.to_thread.run_sync(look, mountpoint))[-1] == "7"
                kvm.remove_subordinate(subordinate(kvm, "passing"))
            print(await trio.to_thread.run_sync(look, mountpoint))
        print(live.closed, is_mounted(mountpoint))
        async with mounted(registry, mountpoint):
            print(await trio.to_thread.run_sync(look, mountpoint))

    trio.run(main)
    print(is_mounted(mountpoint))


def sync_mount_in_trio(mountpoint: str) -> None:
    """Mount with `mount` in a trio program: the loops are two, and do not meet."""

    async def main() -> None:
        with mount(make(), mountpoint):
            print(look(mountpoint))
            await trio.sleep(0)

    trio.run(main)
    print(is_mounted(mountpoint))


def trio_error(mountpoint: str) -> None:
    """Raise in the body of `mounted`: it comes out as it is, and the mount is gone."""

    async def main() -> None:
        async with mounted(make(), mountpoint):
            raise KeyError("mine")

    try:
        trio.run(main)
    except KeyError as error:
        print(repr(error), is_mounted(mountpoint))


def trio_cancelled(mountpoint: str) -> None:
    """Cancel the body of `mounted`, from inside and from outside."""

    async def main() -> None:
        with trio.move_on_after(0.05) as scope:
            async with mounted(make(), mountpoint):
                await trio.sleep_forever()
        print(scope.cancelled_caught, is_mounted(mountpoint))
        async with trio.open_nursery() as nursery:
            async with mounted(make(), mountpoint):
                nursery.cancel_scope.cancel()
            print("after the end")
        print(nursery.cancel_scope.cancelled_caught, is_mounted(mountpoint))

    trio.run(main)


def trio_close(mountpoint: str) -> None:
    """Close from the thread that serves, which is refused, and from one that does not."""

    async def main() -> None:
        async with mounted(make(), mountpoint) as live:
            try:
                live.close()
            except RuntimeError as error:
                print(str(error).startswith(f"{mountpoint}: close() would wait"))
            print(await trio.to_thread.run_sync(look, mountpoint))
            await trio.to_thread.run_sync(live.close)
            print(live.closed, is_mounted(mountpoint))
        print(live.closed)

    trio.run(main)


def trio_unmounted(mountpoint: str) -> None:
    """Be unmounted by somebody else in the middle of the body."""

    async def main() -> None:
        async with mounted(make(), mountpoint) as live:
            await trio.run_process(["fusermount3", "-u", mountpoint])
            while not live.closed:
                await trio.sleep(0.001)
            print("goes on")
        print(is_mounted(mountpoint))

    trio.run(main)


def trio_busy(mountpoint: str) -> None:
    """Leave `mounted` at once, and while threads change the tree."""

    async def main() -> None:
        registry, stop = make(), threading.Event()
        kvm = registry.sources[0]

        def churn(number: int) -> None:
            while not stop.is_set():
                add_cpu(kvm, f"passing{number}")
                kvm.remove_subordinate(subordinate(kvm, f"passing{number}"))

        threads = [threading.Thread(target=churn, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        for _ in range(10):
            async with mounted(registry, mountpoint):
                pass
            async with mounted(registry, mountpoint):
                await trio.run_process(
                    ["ls", "-lR", mountpoint],
                    capture_stdout=True,
                    capture_stderr=True,
                    check=False,
                )
        stop.set()

    trio.run(main)
    print(is_mounted(mountpoint))


def forgetful(mountpoint: str) -> None:
    """Never close."""
    mount(make(), mountpoint)
    print(look(mountpoint))


def forgetful_in_a_thread(mountpoint: str) -> None:
    """Never close, and go on in a thread after the main thread's end."""
    mount(make(), mountpoint)

    def work() -> None:
        threading.main_thread().join()
        print(look(mountpoint))

    threading.Thread(target=work).start()


def exits(mountpoint: str) -> NoReturn:
    """End by sys.exit."""
    mount(make(), mountpoint)
    sys.exit(3)


def raises(mountpoint: str) -> NoReturn:
    """End by an exception that nobody catches."""
    mount(make(), mountpoint)
    raise ValueError("not caught")


def raises_inside(mountpoint: str) -> NoReturn:
    """The same from inside the `with` statement."""
    with mount(make(), mountpoint):
        raise ValueError("not caught")


def dies(mountpoint: str) -> NoReturn:
    """End without any clean-up."""
    mount(make(), mountpoint)
    os._exit(4)


def becomes_another(mountpoint: str) -> NoReturn:
    """Become another program, which knows nothing of the mount."""
    mount(make(), mountpoint)
    os.execvp("sleep", ["sleep", "60"])


def waits(mountpoint: str) -> None:
    """Serve until unmounted."""
    with mount(make(), mountpoint) as live:
        print(live.wait())
    print(is_mounted(mountpoint))


def sleeps(mountpoint: str) -> None:
    """Serve until a signal."""
    with mount(make(), mountpoint):
        while True:
            time.sleep(60)


def trio_sleeps(mountpoint: str) -> None:
    """Serve from trio until a signal."""

    async def main() -> None:
        async with mounted(make(), mountpoint):
            await trio.sleep_forever()

    trio.run(main)


def handles_a_signal(mountpoint: str) -> None:
    """Close in the handler of a signal, whatever the main thread is doing."""
    # Whoever sends the signal has seen the mount, and not whether the handler is there.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    live = mount(make(), mountpoint)
    signal.signal(signal.SIGTERM, lambda number, frame: live.close())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    live.wait()
    print(is_mounted(mountpoint))


def exits_in_a_handler(mountpoint: str) -> None:
    """Leave by an exception from a signal's handler, in the middle of changing the tree."""

    def leave(number: int, frame: object) -> NoReturn:
        sys.exit(0)

    registry = make()
    signal.signal(signal.SIGTERM, leave)
    with mount(registry, mountpoint):
        kvm = registry.sources[0]
        while True:
            add_cpu(kvm, "passing")
            kvm.remove_subordinate(subordinate(kvm, "passing"))
