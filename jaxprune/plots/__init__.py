"""Pictures of the arrays of any training loop.

`training` draws curves, `pairs` a matrix over pairs of seeds (`Matrix`), and `paths` the paths
between networks (`Paths`).

Each function returns a matplotlib `Figure`: save it with `figure.savefig("name.png")`; a notebook
shows it. Matplotlib is not installed with jaxprune: `pip install matplotlib`.
"""

from jaxprune.plots.pictures import Matrix as Matrix
from jaxprune.plots.pictures import Paths as Paths
from jaxprune.plots.pictures import pairs as pairs
from jaxprune.plots.pictures import paths as paths
from jaxprune.plots.pictures import training as training
