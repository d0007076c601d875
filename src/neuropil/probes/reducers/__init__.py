"""Statistics of a stream, one a file; `neuropil.probes.streams` names them all."""
