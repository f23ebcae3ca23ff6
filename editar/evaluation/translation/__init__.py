from editar.evaluation.translation.run import Canny as Canny
from editar.evaluation.translation.run import CocoStuff as CocoStuff
from editar.evaluation.translation.run import Depth as Depth
