"""Jobs computed where they are asked for."""

from concurrent.futures import Future

from foundation.engine import jobs


class InThisProcess:
    """What stands for a pool of one process: it computes at once, here, where JAX is and what it
    has compiled."""

    def __init__(self, *_, initargs, **__):
        jobs._datasets.update(initargs[0].datasets)

    def submit(self, function, *arguments) -> Future:
        future = Future()
        try:
            future.set_result(function(*arguments))
        except Exception as error:
            future.set_exception(error)
        return future

    def shutdown(self, **_) -> None:
        pass
