from .confident import Confident as Confident
from .confident import confident_subset as confident_subset
from .gate import SpectralGate as SpectralGate
from .gate import spectral_part as spectral_part
from .labels import NoisyLabels as NoisyLabels
from .stopping import PhaseAmplitudeStopping as PhaseAmplitudeStopping
from .stopping import Refinement as Refinement
