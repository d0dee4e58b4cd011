"""What is measured, in this order."""

from . import drain, enqueue, health, history, latency, snapshot, wakeup

ALL = {"enqueue": enqueue, "wakeup": wakeup, "drain": drain, "latency": latency, "history": history, "health": health, "snapshot": snapshot}
