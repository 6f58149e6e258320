"""Every shared test that cannot pass says why, and nothing else may be left out."""

import contextlib
import unittest
from fnmatch import fnmatchcase


class Reasons:
    """Put first among the bases of a `unittest.TestCase`.

    A test with a reason is run all the same: when it passes, the reason is out of date and it fails. One that skips
    itself needs a reason here, too. (What a decorator skips, for want of a GPU or of a library, is skipped before.)
    """

    reasons: dict[str, str] = {}  # name of a test, or a pattern of names -> why it does not pass

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        tests = [name for name in dir(cls) if name.startswith("test_")]
        unknown = [pattern for pattern in cls.reasons if not any(fnmatchcase(test, pattern) for test in tests)]
        if unknown:
            raise ValueError(f"{cls.__name__} has reasons for tests that do not exist: {', '.join(unknown)}")

    @property
    def reason(self) -> str | None:
        return next((why for name, why in self.reasons.items() if fnmatchcase(self._testMethodName, name)), None)

    @contextlib.contextmanager
    def subTest(self, *args, **kwargs):
        with contextlib.nullcontext() if self.reason else super().subTest(*args, **kwargs), self._explained():
            yield

    def _callTestMethod(self, method):
        if self.reason is None:
            with self._explained():
                return method()
        try:
            method()
        except Exception:  # a skip is one, too
            self.skipTest(self.reason)
        self.fail(f"passes: take away its reason, {self.reason!r}")

    @contextlib.contextmanager
    def _explained(self):
        try:
            yield
        except unittest.SkipTest as skip:
            if self.reason is None:
                raise AssertionError(f"skips itself, and has no reason here: {skip}") from skip
            raise
