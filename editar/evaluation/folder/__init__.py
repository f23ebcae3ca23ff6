from editar.evaluation.folder.run import OwnPairs
