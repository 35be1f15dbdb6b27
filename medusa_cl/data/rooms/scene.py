"""What a room is made of: materials, solid parts, lights, a camera."""

from dataclasses import dataclass, field
from typing import NamedTuple

from medusa_cl.data.rooms.draws import RGB

CLASSES: tuple[str, ...] = (
    "wall", "floor", "ceiling", "bed", "sofa", "chair", "table", "cabinet", "shelf", "books",
    "door", "window", "picture", "lamp", "rug", "plant", "television", "pillow", "object",
)  # fmt: skip
"""The semantic classes; curtains belong to `window`, armchairs to `sofa`, benches to `chair`, monitors to `television`,
mirrors to `picture`, kitchen units and fridges to `cabinet`; what has no class of its own is an `object`."""

PALETTE: tuple[tuple[int, int, int], ...] = (
    (148, 190, 170), (222, 238, 42), (64, 186, 248), (140, 208, 180), (186, 210, 128), (188, 158, 206), (216, 178, 62),
    (124, 192, 108), (42, 232, 92), (172, 216, 132), (236, 140, 60), (108, 142, 152), (198, 100, 44), (208, 62, 142),
    (116, 218, 76), (24, 122, 44), (60, 62, 80), (56, 156, 92), (250, 84, 84),
)  # fmt: skip
"""A colour (RGB, 0..255) for each class."""

LABEL = {name: number for number, name in enumerate(CLASSES)}
BOX, TUBE, BALL = 0, 1, 2
"""Shapes: a box, an upright cylinder or cone frustum (along x when lying), an ellipsoid."""

Vec = tuple[float, float, float]
Turn = tuple[float, float]
"""Cosine and sine of a rotation about y: local (x, z) -> world (c x + s z, c z - s x)."""


class Material(NamedTuple):
    """A procedural texture and how it reflects; colours are display values in [0, 1]."""

    pattern: str
    first: RGB
    second: RGB = (0.5, 0.5, 0.5)
    third: RGB = (0.2, 0.2, 0.2)
    scale: float = 1.0
    seed: int = 0
    gloss: float = 0.0
    glow: float = 0.0
    turned: bool = False


class Part(NamedTuple):
    """One solid: centre and half sizes in metres, y up, turned about y."""

    shape: int
    centre: Vec
    half: Vec
    material: Material
    label: int
    instance: int
    turn: Turn = (1.0, 0.0)
    taper: float = 0.0
    lying: bool = False
    casts: bool = True


class Light(NamedTuple):
    """A parallelogram of light; `facing` (a unit vector) makes it one-sided, None shines everywhere."""

    centre: Vec
    edge_u: Vec
    edge_v: Vec
    colour: RGB
    facing: Vec | None


class Camera(NamedTuple):
    """A pinhole: position and the unit axes right, down, forward in the world; `reach` = tan(half horizontal field)."""

    position: Vec
    right: Vec
    down: Vec
    forward: Vec
    reach: float


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A furnished room: floor at y = 0, walls at x = +-half[0] and z = +-half[2], ceiling at y = 2 half[1]."""

    half: Vec
    shell: tuple[Material, ...]
    """Materials of the faces -x, +x, -y (floor), +y (ceiling), -z, +z."""
    parts: tuple[Part, ...]
    openings: tuple[tuple[Vec, Vec], ...] = ()
    """Boxes (lowest and highest corner) within which the walls are cut away; parts must close the hole behind."""
    lights: tuple[Light, ...]
    ambient: RGB
    exposure: float
    camera: Camera


@dataclass
class Piece:
    """Furniture being built, in its own frame: x along its width, +z its front, y = 0 its underside."""

    size: Vec = (0.5, 0.5, 0.5)
    """Width, height and depth of what it occupies."""
    parts: list[Part] = field(default_factory=list)
    label: int = 0
    item: int = -1

    def start(self, label: str) -> "Piece":
        """What is added from here on is a new instance of this class."""
        self.label = LABEL[label]
        self.item += 1
        return self

    def _add(self, shape: int, centre: Vec, half: Vec, material: Material, **more: object) -> None:
        part = Part(shape, centre, half, material, self.label, self.item)
        self.parts.append(part._replace(**more))  # type: ignore[arg-type]

    def box(
        self,
        x: tuple[float, float],
        y: tuple[float, float],
        z: tuple[float, float],
        material: Material,
        casts: bool = True,
    ) -> None:
        """Add a box given by its ranges."""
        centre = ((x[0] + x[1]) / 2, (y[0] + y[1]) / 2, (z[0] + z[1]) / 2)
        half = ((x[1] - x[0]) / 2, (y[1] - y[0]) / 2, (z[1] - z[0]) / 2)
        self._add(BOX, centre, half, material, casts=casts)

    def tube(
        self,
        x: float,
        y: tuple[float, float],
        z: float,
        radius: float | tuple[float, float],
        material: Material,
        taper: float = 0.0,
        casts: bool = True,
    ) -> None:
        """Add an upright cylinder; its radius at height h in [-1, 1] is radius * (1 + taper h)."""
        rx, rz = radius if isinstance(radius, tuple) else (radius, radius)
        half = (rx, (y[1] - y[0]) / 2, rz)
        self._add(TUBE, (x, (y[0] + y[1]) / 2, z), half, material, taper=taper, casts=casts)

    def rod(
        self, x: tuple[float, float], y: float, z: float, radius: float, material: Material, casts: bool = True
    ) -> None:
        """Add a cylinder lying along x."""
        half = ((x[1] - x[0]) / 2, radius, radius)
        self._add(TUBE, ((x[0] + x[1]) / 2, y, z), half, material, lying=True, casts=casts)

    def ball(self, centre: Vec, half: Vec, material: Material, casts: bool = True) -> None:
        """Add an ellipsoid."""
        self._add(BALL, centre, half, material, casts=casts)

    def attach(self, other: "Piece", at: Vec, turn: Turn = (1.0, 0.0)) -> None:
        """Add another piece's parts, moved and turned, as instances of their own."""
        self.parts += [moved(part, at, turn, self.item + 1) for part in other.parts]
        self.item += other.item + 1


def moved(part: Part, at: Vec, turn: Turn, first_instance: int) -> Part:
    """The part turned about the origin, then moved; its instance counted from `first_instance`."""
    (x, y, z), (c, s), (pc, ps) = part.centre, turn, part.turn
    centre = (c * x + s * z + at[0], y + at[1], c * z - s * x + at[2])
    return part._replace(
        centre=centre, turn=(c * pc - s * ps, s * pc + c * ps), instance=first_instance + part.instance
    )


def rotation(t: float) -> Turn:
    """The rotation by 2 atan(t) in rational form: no sine or cosine, whose last bits depend on the C library."""
    return (1.0 - t * t) / (1.0 + t * t), 2.0 * t / (1.0 + t * t)
