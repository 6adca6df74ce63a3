"""The closed lists of names a query may use. A name that is not here is an error, never looked up.

Source: servicex.md §8.1 of the project's contracts; names and meanings are NumPy's and vector's.
"""

OPERATORS: dict[str, tuple[int, int]] = {
    "Select": (2, 2), "SelectMany": (2, 2), "Where": (2, 2), "Count": (1, 1), "Sum": (1, 1), "Max": (1, 2),
    "Min": (1, 2), "First": (1, 2), "Last": (1, 2), "ElementAt": (2, 3), "Any": (1, 2), "All": (1, 2),
    "Contains": (2, 2), "Concat": (2, 2), "Zip": (1, 1), "OrderBy": (2, 2), "OrderByDescending": (2, 2),
    "Choose": (2, 2), "ToFourMomenta": (1, 1), "ToFourMomentum": (1, 1), "Aggregate": (3, 3),
}  # fmt: skip
"""Operator to the least and greatest number of fields, the source included."""

WITH_LAMBDA = frozenset({"Select", "SelectMany", "Where", "Any", "All", "OrderBy", "OrderByDescending"})
DEFAULTED = frozenset({"First", "Last", "Max", "Min", "ElementAt"})
"""Their last field, beyond what they need, stands in for what is missing."""
STREAMED = frozenset({"Select", "SelectMany", "Where"})
"""What runs over the events one after the other …"""
TOTALS = frozenset({"Count", "Sum", "Max", "Min", "Any", "All", "Contains"})
"""… and what makes one row of them."""
PICKS = {"First": 0, "Last": -1}

WRAPPERS = {
    "ResultParquet": ("columns", "file"), "ResultTTree": ("columns", "tree", "file"),
    "ResultAwkwardArray": ("columns",), "ResultPandasDF": ("columns",),
    "AsParquetFiles": ("file", "columns"), "AsROOTTTree": ("file", "tree", "columns"),
    "AsROOTTree": ("file", "tree", "columns"), "AsAwkwardArray": ("columns",), "AsPandasDF": ("columns",),
}  # fmt: skip
"""Terminal wrappers of some clients: what follows the source."""

_ONE = (
    "absolute fabs sqrt cbrt square exp exp2 expm1 log log2 log10 log1p sin cos tan arcsin arccos arctan "
    "sinh cosh tanh arcsinh arccosh arctanh degrees radians deg2rad rad2deg floor ceil rint trunc sign isnan "
    "isfinite isinf negative positive reciprocal logical_not signbit invert"
)
_TWO = (
    "arctan2 hypot maximum minimum fmax fmin power float_power mod fmod remainder add subtract multiply "
    "divide true_divide floor_divide logical_and logical_or logical_xor equal not_equal less less_equal "
    "greater greater_equal copysign heaviside bitwise_and bitwise_or bitwise_xor left_shift right_shift"
)
UFUNCS: dict[str, int] = {**dict.fromkeys(_ONE.split(), 1), **dict.fromkeys(_TWO.split(), 2)}
"""NumPy ufunc to its number of arguments."""

_DTYPES = "float64 float32 int64 int32 int16 int8 uint64 uint32 uint16 uint8 bool_"
CASTS: dict[str, str] = {name: name.rstrip("_") for name in _DTYPES.split()} | {
    "double": "float64", "float": "float64", "int": "int64", "bool": "bool",
}  # fmt: skip
"""Conversions: ``np.float64(x)`` makes what follows double precision."""

CONSTANTS = {"pi": 3.141592653589793, "e": 2.718281828459045, "inf": float("inf"), "nan": float("nan")}

ALIASES = {
    "abs": "absolute", "pow": "power", "asin": "arcsin", "acos": "arccos", "atan": "arctan",
    "atan2": "arctan2",
    "asinh": "arcsinh", "acosh": "arccosh", "atanh": "arctanh", "bitwise_not": "invert", "round": "rint",
}  # fmt: skip

FOLDS = {
    "len": "Count", "sum": "Sum", "max": "Max", "min": "Min", "any": "Any", "all": "All", "amax": "Max",
    "amin": "Min",
}  # fmt: skip
"""Functions of one sequence, as their operator."""
NAMES = frozenset({*OPERATORS, *FOLDS, *UFUNCS, *ALIASES, *CASTS, "Range"})
"""What can be called by name."""

BINARY = {
    "+": "add", "-": "subtract", "*": "multiply", "/": "true_divide", "%": "remainder", "**": "power",
    "//": "floor_divide", "&": "bitwise_and", "|": "bitwise_or", "^": "bitwise_xor", "<<": "left_shift",
    ">>": "right_shift", "==": "equal", "!=": "not_equal", "<": "less", "<=": "less_equal", ">": "greater",
    ">=": "greater_equal", "and": "logical_and", "or": "logical_or",
}  # fmt: skip
UNARY = {"+": "positive", "-": "negative", "~": "invert", "not": "logical_not"}

_TIMES = {"mass", "m", "M", "tau", "energy", "e", "E", "t"}
COORDINATES = (
    ({"pt", "rho"}, {"phi"}, {"eta", "theta", "pz", "z"}, _TIMES),
    ({"px", "x"}, {"py", "y"}, {"pz", "z", "eta", "theta"}, _TIMES),
)
"""A four-momentum has one field of each set of one of the rows; of two or three sets it is one in the plane
(missing energy) or in space."""

_PROPERTIES = (
    "pt eta phi mass energy px py pz p theta E M m e rho x y z t tau mt Mt et Et rapidity mass2 m2 M2 pt2 p2 "
    "E2 e2 energy2 mt2 Mt2 et2 Et2 rho2 t2 tau2 mag mag2 costheta cottheta beta gamma pseudorapidity "
    "transverse_energy transverse_mass"
)
_OF_TWO = (
    "deltaR deltaR2 deltaphi deltaeta deltaRapidityPhi deltaRapidityPhi2 deltaangle add subtract dot boost "
    "boost_p4 boostCM_of boostCM_of_p4"
)
BY_NUMBER = frozenset({"boostX", "boostY", "boostZ", "rotateX", "rotateY", "rotateZ", "scale"})
"""Vector methods whose argument is a number."""
VECTOR_PROPERTIES = frozenset(_PROPERTIES.split())
VECTOR_METHODS: dict[str, int] = {
    **dict.fromkeys((*_OF_TWO.split(), *BY_NUMBER), 1),
    **dict.fromkeys(("unit", "is_timelike", "is_spacelike", "is_lightlike", *VECTOR_PROPERTIES), 0),
}
"""Vector method to its number of arguments; a property may be written with brackets."""
METHOD_ALIASES = {
    "DeltaR": "deltaR", "delta_r": "deltaR", "DeltaPhi": "deltaphi", "delta_phi": "deltaphi",
    "deltaPhi": "deltaphi",
    "DeltaEta": "deltaeta", "deltaEta": "deltaeta", "delta_eta": "deltaeta",
}  # fmt: skip
