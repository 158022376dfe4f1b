"""Old names of what :mod:`klrl.run.tensorboard_writer` has."""

from klrl.renamed import moved

__getattr__ = moved(__name__, "klrl.run.tensorboard_writer", {"points": "points", "Board": "TensorBoardWriter"})
