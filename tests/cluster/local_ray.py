"""Ray's calls in this process: an actor is an object on a thread."""

import asyncio
import inspect
import itertools
import threading
import weakref
from concurrent import futures
from types import SimpleNamespace

import ray

from cluster.fleet import calls


def _run(loop):
    try:
        loop.run_forever()
    finally:
        loop.close()


class Handle:
    """An actor: an object whose calls run one after another, or, where they are coroutines, on a loop of its own."""

    numbers = itertools.count()

    def __init__(self, made):
        self.made, self.dead, self.calls = made, False, []
        number = next(self.numbers)
        self._actor_id = SimpleNamespace(hex=lambda: f"{number:04}")
        self._thread, self._loop = futures.ThreadPoolExecutor(1), asyncio.new_event_loop()
        threading.Thread(target=_run, args=[self._loop], daemon=True).start()
        # With the test that made it: a loop has three open files.
        weakref.finalize(self, self._loop.call_soon_threadsafe, self._loop.stop).atexit = False

    def __getattr__(self, method):
        def remote(*arguments):
            self.calls.append(method)
            if self.dead:
                future = futures.Future()
                future.set_exception(ray.exceptions.RayError("the actor died"))
                return future
            function = getattr(self.made, method)
            if inspect.iscoroutinefunction(function):
                return asyncio.run_coroutine_threadsafe(function(*arguments), self._loop)
            return self._thread.submit(function, *arguments)

        return SimpleNamespace(remote=remote, options=lambda **_: SimpleNamespace(remote=remote))


class Unwatched:
    """In the place of the watch: actors here are no processes."""

    def __init__(self, *_):
        pass

    def why(self, name):
        return ""

    def gather(self, role, pending, deadline_s, name):
        return calls.gather(pending, deadline_s)

    def explain(self, role, errors):
        return errors

    def end(self, name, actor):
        FakeRay.kill(actor)

    def __getattr__(self, method):
        return lambda *_: None


class FakeRay:
    """The part of Ray that actors and roles call."""

    exceptions = ray.exceptions
    util = SimpleNamespace(get_node_ip_address=lambda: "127.0.0.1")

    @staticmethod
    def wait(refs, num_returns, timeout):
        done = list(futures.wait(refs, timeout, futures.FIRST_COMPLETED).done)[:num_returns]
        return done, [ref for ref in refs if ref not in done]

    @staticmethod
    def get(ref, timeout):
        try:
            return ref.result(timeout)
        except Exception as error:
            if isinstance(error, ray.exceptions.RayError):
                raise
            raise ray.exceptions.RayError(f"{type(error).__name__}: {error}") from error

    @staticmethod
    def kill(handle):
        handle.dead = True

    @staticmethod
    def remote(cls):
        made = SimpleNamespace(remote=lambda *arguments: Handle(cls(*arguments)))
        return SimpleNamespace(options=lambda **_: made)
