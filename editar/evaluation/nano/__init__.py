from editar.evaluation.nano.pairs import NanoPairsBenchmark
from editar.evaluation.nano.run import Nano
