"""Who competes, in the order of the tables."""

from .baseline import Baseline, BaselineByPlace, BaselineKept
from .graphile import Graphile
from .ours import Ours, OursNotKept, OursWorker, OursWorkerNotKept
from .pgboss import PgBoss
from .pgmq import Pgmq, PgmqArchive
from .pgq import Pgq
from .procrastinate import Procrastinate

ALL = [Baseline, BaselineByPlace, BaselineKept, Ours, OursNotKept, OursWorker, OursWorkerNotKept, Pgmq, PgmqArchive, Pgq, Graphile, PgBoss, Procrastinate]
FAMILIES = list(dict.fromkeys(one.family for one in ALL))
