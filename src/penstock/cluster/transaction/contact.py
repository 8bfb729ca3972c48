"""A node's contact with the store: whether it may judge others, and whether it may promise not to.

A node that cannot renew its lease would have to stop, as others may believe it dead. It need not while nobody can judge
it: it asks everybody who could, and each one *promises* to judge nobody for one lease. Who is in contact with the store
does not promise, so a node that is cut off alone still stops. A promise is kept by `may_judge`, and so is this: nobody
judges before having been in contact for one whole lease, because until then those who are alive may not have found the
store again either.
"""

from __future__ import annotations

SILENCE = 1 / 3
"""The share of a lease without a grant after which a node is out of contact."""
DOUBT = 1 / 4
"""The share of a lease without a grant after which it begins to ask its peers."""


class Contact:
    """Times are seconds of the node's monotonic clock; `lease` is the length of leases. At first there is none."""

    def __init__(self, lease: float) -> None:
        self._lease = lease
        self._granted_at = self._since = self._promised_until = float("-inf")
        self._failing = False

    def granted(self, now: float, *, goes_on: bool) -> None:
        """The store has granted a lease. `goes_on`: it is the one that this node had, and has never run out."""
        if not goes_on or now > self._granted_at + SILENCE * self._lease:
            self._since = now
        self._granted_at, self._failing = now, False

    def failed(self) -> None:
        """A renewal has failed: out of contact until the next grant."""
        self._failing = True

    def begins(self, now: float) -> None:
        """What is known about others begins now: the catalogue is a new one."""
        self._since = now

    def lost(self, now: float) -> bool:
        """Whether the store cannot be reached at this moment."""
        return self._failing or now > self._granted_at + SILENCE * self._lease

    def doubts(self, now: float) -> bool:
        """Whether it may be so."""
        return self._failing or now > self._granted_at + DOUBT * self._lease

    def may_judge(self, now: float) -> bool:
        """Whether others without a lease may be taken for dead: see the module."""
        return not self.lost(now) and now >= self._since + self._lease and now >= self._promised_until

    def promise(self, now: float) -> bool:
        """Promise to judge nobody for one lease from now, or refuse."""
        if not self.lost(now):
            return False
        self._promised_until = max(self._promised_until, now + self._lease)
        return True
