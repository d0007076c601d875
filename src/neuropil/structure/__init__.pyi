from . import develop as develop
from . import dynamic as dynamic
from . import landscape as landscape
from . import search as search
from .allocation import allocate as allocate
from .allocation import erk_densities as erk_densities
from .bottleneck import GateResult as GateResult
from .bottleneck import autobot as autobot
from .bottleneck import learn_bottleneck as learn_bottleneck
from .bottleneck import select_by_macs as select_by_macs
from .chaos import MeanField as MeanField
from .chaos import StableResidual as StableResidual
from .chaos import edge_of_chaos as edge_of_chaos
from .chaos import init_edge_of_chaos_ as init_edge_of_chaos_
from .chaos import mean_field as mean_field
from .collapse import critical_sparsity as critical_sparsity
from .collapse import layer_collapse as layer_collapse
from .collapse import sbp_bound as sbp_bound
from .compensation import Compensation as Compensation
from .compensation import compensated_cut as compensated_cut
from .criteria import SNIP as SNIP
from .criteria import Gradient as Gradient
from .criteria import HessianDiagonal as HessianDiagonal
from .criteria import Magnitude as Magnitude
from .criteria import Random as Random
from .criteria import SynFlow as SynFlow
from .criteria import TaylorFirst as TaylorFirst
from .criterion import Criterion as Criterion
from .curvature import KroneckerNeuron as KroneckerNeuron
from .curvature_pruner import CurvaturePruner as CurvaturePruner
from .flatness import FlatnessPenalty as FlatnessPenalty
from .freeze import FrozenNet as FrozenNet
from .freeze import Storage as Storage
from .freeze import freeze_at_init as freeze_at_init
from .gates import UnitGates as UnitGates
from .gates import expected_macs as expected_macs
from .gates import gate_sensitivity as gate_sensitivity
from .graph import UnitGraph as UnitGraph
from .graph import UnitGroup as UnitGroup
from .graph import trace_units as trace_units
from .graph import unit_scores as unit_scores
from .growth import GradientGrowth as GradientGrowth
from .growth import MomentumGrowth as MomentumGrowth
from .growth import RandomGrowth as RandomGrowth
from .initial import prune_at_init as prune_at_init
from .initial import rescale_to_data_ as rescale_to_data_
from .initial import rescale_to_edge_ as rescale_to_edge_
from .lottery import Stability as Stability
from .lottery import Ticket as Ticket
from .lottery import find_ticket as find_ticket
from .lottery import stability as stability
from .maintenance import Chain as Chain
from .maintenance import Maintenance as Maintenance
from .masks import MaskHandle as MaskHandle
from .masks import Masks as Masks
from .masks import attach as attach
from .masks import prunable_parameters as prunable_parameters
from .optimizers import replace_parameter as replace_parameter
from .optimizers import reset_state_ as reset_state_
from .plasticity import pruning_plasticity as pruning_plasticity
from .profile import CostComparison as CostComparison
from .profile import Profile as Profile
from .profile import compare_profiles as compare_profiles
from .profile import count_macs as count_macs
from .prune import PruneReport as PruneReport
from .prune import prune_units as prune_units
from .prune import remove_units as remove_units
from .prune import select_units as select_units
from .repair import OptimalBrainRepair as OptimalBrainRepair
from .repair import noise_like as noise_like
from .schedules import Constant as Constant
from .schedules import CosineDecay as CosineDecay
from .schedules import Cubic as Cubic
from .schedules import Iterative as Iterative
from .schedules import OneShot as OneShot
from .schedules import Schedule as Schedule
from .sensitivity import InsensitivityDecay as InsensitivityDecay
from .sensitivity import neuron_sensitivity as neuron_sensitivity
from .serene import SeReNe as SeReNe
from .serene import threshold_by_loss as threshold_by_loss
from .sparsifier import Event as Event
from .sparsifier import Sparsifier as Sparsifier
from .sparsifier import gmp as gmp
from .sparsifier import granet as granet
from .sparsifier import rigl as rigl
from .sparsifier import set_ as set_
from .speed import Timing as Timing
from .speed import latency as latency
from .surgery import SlimAttention as SlimAttention
from .surgery import cut as cut
from .surgery import deepen as deepen
from .surgery import discover as discover
from .surgery import load_pruned as load_pruned
from .surgery import mask_units as mask_units
from .surgery import permute as permute
from .surgery import shrink as shrink
from .surgery import widen as widen
from .weightspace import Permutation as Permutation
from .weightspace import TaskVector as TaskVector
from .weightspace import interpolate as interpolate
from .weightspace import loss_barrier as loss_barrier
from .weightspace import match_activations as match_activations
from .weightspace import match_straight_through as match_straight_through
from .weightspace import match_weights as match_weights
from .weightspace import merge_many as merge_many
from .weightspace import reset_norm_ as reset_norm_

__all__ = [
    "SNIP",
    "Chain",
    "Compensation",
    "Constant",
    "CosineDecay",
    "CostComparison",
    "Criterion",
    "Cubic",
    "CurvaturePruner",
    "Event",
    "FlatnessPenalty",
    "FrozenNet",
    "GateResult",
    "Gradient",
    "GradientGrowth",
    "HessianDiagonal",
    "InsensitivityDecay",
    "Iterative",
    "KroneckerNeuron",
    "Magnitude",
    "Maintenance",
    "MaskHandle",
    "Masks",
    "MeanField",
    "MomentumGrowth",
    "OneShot",
    "OptimalBrainRepair",
    "Permutation",
    "Profile",
    "PruneReport",
    "Random",
    "RandomGrowth",
    "Schedule",
    "SeReNe",
    "SlimAttention",
    "Sparsifier",
    "Stability",
    "StableResidual",
    "Storage",
    "SynFlow",
    "TaskVector",
    "TaylorFirst",
    "Ticket",
    "Timing",
    "UnitGates",
    "UnitGraph",
    "UnitGroup",
    "allocate",
    "attach",
    "autobot",
    "compare_profiles",
    "compensated_cut",
    "count_macs",
    "critical_sparsity",
    "cut",
    "deepen",
    "develop",
    "discover",
    "dynamic",
    "edge_of_chaos",
    "erk_densities",
    "expected_macs",
    "find_ticket",
    "freeze_at_init",
    "gate_sensitivity",
    "gmp",
    "granet",
    "init_edge_of_chaos_",
    "interpolate",
    "landscape",
    "latency",
    "layer_collapse",
    "learn_bottleneck",
    "load_pruned",
    "loss_barrier",
    "mask_units",
    "match_activations",
    "match_straight_through",
    "match_weights",
    "mean_field",
    "merge_many",
    "neuron_sensitivity",
    "noise_like",
    "permute",
    "prunable_parameters",
    "prune_at_init",
    "prune_units",
    "pruning_plasticity",
    "remove_units",
    "replace_parameter",
    "rescale_to_data_",
    "rescale_to_edge_",
    "reset_norm_",
    "reset_state_",
    "rigl",
    "sbp_bound",
    "search",
    "select_by_macs",
    "select_units",
    "set_",
    "shrink",
    "stability",
    "threshold_by_loss",
    "trace_units",
    "unit_scores",
    "widen",
]
