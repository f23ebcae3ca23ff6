from editar.evaluation.nano.run import Nano
