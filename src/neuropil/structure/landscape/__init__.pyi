from .connectivity import Connectivity as Connectivity
from .connectivity import mode_connectivity as mode_connectivity
from .diagram import Advice as Advice
from .diagram import PhaseDiagram as PhaseDiagram
from .phases import Gauges as Gauges
from .phases import phase_diagram as phase_diagram
from .sharpness import SAM as SAM
