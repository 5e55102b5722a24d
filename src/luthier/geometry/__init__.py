"""The shape of clouds of points: exact neighbours and the intrinsic dimension."""

from luthier.geometry.dimension import Dimension as Dimension
from luthier.geometry.dimension import draws as draws
from luthier.geometry.dimension import intrinsic_dimension as intrinsic_dimension
from luthier.geometry.dimension import ratios as ratios
from luthier.geometry.neighbours import distinct as distinct
