from editar.evaluation.translation.run import Canny, CocoStuff, Depth
