"""Named styles of rooms, and the materials of one room: a few drawn once, so that its furniture belongs together."""

from dataclasses import dataclass
from typing import NamedTuple

from medusa_cl.data.rooms.draws import RGB, Draw, blend, hsv, shade
from medusa_cl.data.rooms.scene import Material
from medusa_cl.errors import ConfigError, unknown

METAL = Material("plain", (0.62, 0.62, 0.64), gloss=0.5)
BRASS = Material("plain", (0.72, 0.58, 0.3), gloss=0.5)
BLACK = Material("plain", (0.1, 0.1, 0.11), gloss=0.3)
WHITE = Material("plain", (0.9, 0.89, 0.86))
IRON = Material("steel", (0.3, 0.3, 0.31), (0.22, 0.22, 0.23), (0.4, 0.22, 0.12), gloss=0.4)
COPPER = Material("plain", (0.72, 0.42, 0.28), gloss=0.5)

Range = tuple[float, float]


class Tones(NamedTuple):
    """Ranges of hue (in turns), saturation and value to draw a colour from."""

    hue: Range
    saturation: Range
    value: Range


class Surface(NamedTuple):
    """A pattern with the tones of its first colour, the factor to its second one, its scale and gloss."""

    pattern: str
    tones: Tones
    contrast: Range = (0.75, 0.85)
    scale: Range = (0.8, 1.2)
    gloss: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Look:
    """What the rooms of one style draw their materials and their light from.

    What is named twice is drawn twice as often.
    """

    woods: tuple[Surface, ...]
    """What furniture, doors and frames are made of."""
    walls: tuple[Surface, ...]
    floors: tuple[Surface, ...]
    ceilings: tuple[Surface, ...]
    cloth: tuple[Tones, ...]
    """Tones of upholstery, blankets, curtains, pillows."""
    cloths: tuple[str, ...]
    """Patterns of cloth when it has one."""
    rugs: tuple[str, ...]
    metals: tuple[Material, ...]
    leather: Tones
    glaze: Tones
    """China, painted metal, plastic."""
    warmth: Range
    """Blue in the light of lamps, red being 1."""
    daylight: Range
    """Red in the light of windows, blue being 1."""
    exposure: Range
    """Display value of the median pixel."""
    town: Range
    """How built up the view through the windows is."""
    lights: tuple[int, int]
    """Columns and rows of panes in a window, at least."""


_PALE = Tones((0.05, 0.2), (0.01, 0.08), (0.82, 0.95))
_ANY = Tones((0.0, 1.0), (0.15, 0.5), (0.4, 0.85))
_WHITE_PAINT = Surface("wood", Tones((0.08, 0.16), (0.02, 0.08), (0.82, 0.94)), (0.93, 0.96), gloss=0.15)
_CEILING = Surface("plain", _PALE)

LOOKS: dict[str, Look] = {
    "modern": Look(
        woods=(
            Surface("plain", Tones((0.08, 0.16), (0.01, 0.05), (0.84, 0.94)), gloss=0.4),
            Surface("plain", Tones((0.55, 0.65), (0.02, 0.1), (0.22, 0.5)), gloss=0.4),
            Surface("wood", Tones((0.05, 0.08), (0.4, 0.55), (0.32, 0.5)), (0.62, 0.75), gloss=0.2),
            Surface("wood", Tones((0.08, 0.11), (0.2, 0.35), (0.7, 0.85)), (0.8, 0.9), gloss=0.2),
        ),
        walls=(
            Surface("plain", Tones((0.0, 1.0), (0.0, 0.06), (0.72, 0.92))),
            Surface("plain", Tones((0.0, 1.0), (0.0, 0.06), (0.72, 0.92))),
            Surface("plain", Tones((0.5, 0.7), (0.15, 0.35), (0.45, 0.7))),
            Surface("stripes", Tones((0.0, 1.0), (0.02, 0.1), (0.7, 0.88)), (0.88, 0.94), (1.5, 2.5)),
        ),
        floors=(
            Surface("planks", Tones((0.07, 0.1), (0.12, 0.35), (0.55, 0.85)), (0.78, 0.88), (1.2, 1.6), 0.3),
            Surface("tiles", Tones((0.05, 0.6), (0.01, 0.06), (0.5, 0.85)), (0.97, 1.0), (1.6, 2.2), 0.45),
            Surface("terrazzo", Tones((0.05, 0.15), (0.02, 0.08), (0.75, 0.88)), (0.55, 0.75), (0.8, 1.4), 0.4),
        ),
        ceilings=(_CEILING,),
        cloth=(
            Tones((0.0, 1.0), (0.01, 0.08), (0.3, 0.85)),
            Tones((0.0, 1.0), (0.01, 0.08), (0.3, 0.85)),
            Tones((0.0, 1.0), (0.35, 0.7), (0.4, 0.8)),
        ),
        cloths=("stripes", "fabric", "dots"),
        rugs=("carpet", "carpet", "stripes", "rings"),
        metals=(METAL, METAL, BLACK),
        leather=Tones((0.0, 0.1), (0.02, 0.3), (0.12, 0.85)),
        glaze=Tones((0.0, 1.0), (0.05, 0.7), (0.5, 0.95)),
        warmth=(0.75, 0.92),
        daylight=(0.85, 0.95),
        exposure=(0.44, 0.54),
        town=(0.6, 1.2),
        lights=(1, 1),
    ),
    "rustic": Look(
        woods=(
            Surface("wood", Tones((0.06, 0.09), (0.5, 0.68), (0.5, 0.72)), (0.55, 0.7), gloss=0.1),
            Surface("wood", Tones((0.05, 0.08), (0.45, 0.6), (0.32, 0.5)), (0.55, 0.7), gloss=0.1),
            Surface("wood", Tones((0.08, 0.11), (0.4, 0.55), (0.65, 0.82)), (0.6, 0.75), gloss=0.1),
            Surface("wood", Tones((0.3, 0.6), (0.15, 0.35), (0.4, 0.65)), (0.78, 0.88)),
        ),
        walls=(
            Surface("plaster", Tones((0.07, 0.13), (0.08, 0.25), (0.74, 0.9)), (0.86, 0.93)),
            Surface("plaster", Tones((0.03, 0.1), (0.2, 0.42), (0.62, 0.82)), (0.82, 0.92)),
            Surface("boards", Tones((0.07, 0.1), (0.25, 0.5), (0.55, 0.82)), (0.68, 0.8), (0.8, 1.1)),
            Surface("boards", Tones((0.1, 0.5), (0.04, 0.2), (0.65, 0.88)), (0.88, 0.94), (0.6, 0.9)),
        ),
        floors=(
            Surface("planks", Tones((0.05, 0.09), (0.4, 0.62), (0.42, 0.72)), (0.62, 0.75), (1.1, 1.5), 0.15),
            Surface("planks", Tones((0.05, 0.09), (0.4, 0.62), (0.42, 0.72)), (0.62, 0.75), (1.1, 1.5), 0.15),
            Surface("tiles", Tones((0.02, 0.06), (0.4, 0.6), (0.5, 0.7)), (0.8, 0.9), (0.7, 1.1), 0.1),
        ),
        ceilings=(Surface("planks", Tones((0.06, 0.1), (0.2, 0.5), (0.5, 0.85)), (0.75, 0.85)), _CEILING, _CEILING),
        cloth=(
            Tones((0.96, 1.06), (0.35, 0.65), (0.4, 0.7)),
            Tones((0.07, 0.13), (0.15, 0.4), (0.6, 0.88)),
            Tones((0.22, 0.4), (0.2, 0.4), (0.35, 0.6)),
        ),
        cloths=("plaid", "plaid", "stripes", "dots"),
        rugs=("plaid", "stripes", "carpet", "persian"),
        metals=(BLACK, BLACK, BRASS),
        leather=Tones((0.04, 0.08), (0.45, 0.65), (0.25, 0.5)),
        glaze=Tones((0.02, 0.16), (0.2, 0.6), (0.45, 0.85)),
        warmth=(0.5, 0.7),
        daylight=(0.9, 1.0),
        exposure=(0.38, 0.47),
        town=(0.0, 0.3),
        lights=(2, 2),
    ),
    "classic": Look(
        woods=(
            Surface("wood", Tones((0.02, 0.05), (0.55, 0.72), (0.28, 0.45)), (0.55, 0.7), gloss=0.35),
            Surface("wood", Tones((0.04, 0.07), (0.5, 0.65), (0.4, 0.58)), (0.6, 0.75), gloss=0.35),
            Surface("wood", Tones((0.1, 0.14), (0.08, 0.2), (0.78, 0.9)), (0.9, 0.95), gloss=0.2),
        ),
        walls=(
            Surface("damask", Tones((0.0, 1.0), (0.12, 0.4), (0.5, 0.85)), (0.8, 0.9), (0.9, 1.4)),
            Surface("damask", Tones((0.05, 0.16), (0.15, 0.3), (0.75, 0.9)), (0.82, 0.9), (0.9, 1.6)),
            Surface("stripes", Tones((0.0, 1.0), (0.1, 0.3), (0.6, 0.85)), (0.84, 0.92), (0.8, 1.4)),
            Surface("plain", Tones((0.0, 1.0), (0.12, 0.35), (0.55, 0.85))),
        ),
        floors=(
            Surface("herringbone", Tones((0.05, 0.08), (0.4, 0.6), (0.45, 0.7)), (0.65, 0.78), (0.8, 1.1), 0.35),
            Surface("parquet", Tones((0.05, 0.08), (0.4, 0.6), (0.45, 0.7)), (0.65, 0.78), (0.8, 1.2), 0.35),
            Surface("tiles", Tones((0.05, 0.12), (0.03, 0.1), (0.8, 0.9)), (0.3, 0.55), (1.0, 1.5), 0.5),
            Surface("carpet", Tones((0.95, 1.1), (0.25, 0.5), (0.35, 0.65)), (0.75, 0.8)),
        ),
        ceilings=(_CEILING,),
        cloth=(
            Tones((0.95, 1.02), (0.45, 0.7), (0.3, 0.55)),
            Tones((0.3, 0.45), (0.3, 0.55), (0.25, 0.5)),
            Tones((0.58, 0.68), (0.3, 0.55), (0.3, 0.55)),
            Tones((0.08, 0.14), (0.2, 0.4), (0.7, 0.88)),
        ),
        cloths=("damask", "damask", "stripes"),
        rugs=("persian",),
        metals=(BRASS, BRASS, BLACK),
        leather=Tones((0.0, 0.06), (0.4, 0.6), (0.2, 0.4)),
        glaze=Tones((0.0, 1.0), (0.2, 0.7), (0.35, 0.9)),
        warmth=(0.58, 0.78),
        daylight=(0.88, 0.98),
        exposure=(0.38, 0.47),
        town=(0.3, 0.9),
        lights=(2, 3),
    ),
    "nordic": Look(
        woods=(
            Surface("wood", Tones((0.09, 0.12), (0.2, 0.36), (0.78, 0.92)), (0.86, 0.93), gloss=0.1),
            _WHITE_PAINT,
            Surface("wood", Tones((0.08, 0.11), (0.3, 0.42), (0.7, 0.85)), (0.8, 0.9), gloss=0.1),
            Surface("wood", Tones((0.45, 0.62), (0.08, 0.22), (0.6, 0.8)), (0.92, 0.96), gloss=0.1),
        ),
        walls=(
            Surface("plain", Tones((0.0, 1.0), (0.0, 0.05), (0.86, 0.95))),
            Surface("plain", Tones((0.3, 0.65), (0.08, 0.2), (0.72, 0.88))),
            Surface("dots", Tones((0.0, 1.0), (0.03, 0.12), (0.82, 0.93)), (0.82, 0.9), (0.5, 0.9)),
            Surface("boards", Tones((0.1, 0.6), (0.01, 0.08), (0.82, 0.94)), (0.94, 0.97), (0.6, 0.9)),
        ),
        floors=(
            Surface("planks", Tones((0.08, 0.11), (0.15, 0.3), (0.75, 0.9)), (0.85, 0.92), (0.8, 1.2), 0.2),
            Surface("planks", Tones((0.08, 0.11), (0.15, 0.3), (0.75, 0.9)), (0.85, 0.92), (0.8, 1.2), 0.2),
            Surface("carpet", Tones((0.05, 0.6), (0.02, 0.12), (0.65, 0.85)), (0.82, 0.88)),
            Surface("tiles", Tones((0.5, 0.65), (0.03, 0.1), (0.75, 0.88)), (0.8, 0.92), (0.7, 1.0), 0.3),
        ),
        ceilings=(_CEILING, _CEILING, Surface("planks", _PALE, (0.94, 0.96))),
        cloth=(
            Tones((0.05, 0.15), (0.02, 0.12), (0.75, 0.92)),
            Tones((0.45, 0.65), (0.12, 0.35), (0.5, 0.8)),
            Tones((0.95, 1.13), (0.2, 0.4), (0.7, 0.88)),
        ),
        cloths=("dots", "stripes", "chequers"),
        rugs=("stripes", "chequers", "carpet", "rings"),
        metals=(WHITE, METAL, BLACK),
        leather=Tones((0.06, 0.09), (0.35, 0.5), (0.55, 0.72)),
        glaze=Tones((0.0, 1.0), (0.1, 0.45), (0.6, 0.95)),
        warmth=(0.68, 0.86),
        daylight=(0.8, 0.92),
        exposure=(0.46, 0.56),
        town=(0.1, 0.6),
        lights=(2, 1),
    ),
    "retro": Look(
        woods=(
            Surface("wood", Tones((0.05, 0.075), (0.58, 0.75), (0.5, 0.68)), (0.66, 0.78), gloss=0.3),
            Surface("wood", Tones((0.05, 0.075), (0.58, 0.75), (0.5, 0.68)), (0.66, 0.78), gloss=0.3),
            Surface("plain", Tones((0.04, 0.14), (0.55, 0.8), (0.65, 0.9)), gloss=0.4),
            Surface("plain", Tones((0.1, 0.15), (0.05, 0.15), (0.8, 0.92)), gloss=0.4),
        ),
        walls=(
            Surface("discs", Tones((0.05, 0.14), (0.3, 0.6), (0.7, 0.88)), (0.62, 0.8), (0.8, 1.5)),
            Surface("stripes", Tones((0.05, 0.2), (0.3, 0.5), (0.7, 0.88)), (0.7, 0.85), (1.2, 2.4)),
            Surface("plain", Tones((0.08, 0.22), (0.25, 0.5), (0.65, 0.88))),
            Surface("plain", Tones((0.45, 0.53), (0.25, 0.45), (0.5, 0.75))),
        ),
        floors=(
            Surface("carpet", Tones((0.03, 0.25), (0.35, 0.6), (0.4, 0.65)), (0.75, 0.8)),
            Surface("parquet", Tones((0.055, 0.08), (0.5, 0.65), (0.5, 0.7)), (0.7, 0.82), (0.8, 1.2), 0.3),
            Surface("tiles", Tones((0.05, 0.5), (0.2, 0.4), (0.65, 0.85)), (0.55, 0.8), (0.8, 1.2), 0.4),
            Surface("terrazzo", Tones((0.05, 0.12), (0.1, 0.25), (0.68, 0.82)), (0.5, 0.7), (1.0, 1.6), 0.3),
        ),
        ceilings=(_CEILING, Surface("plain", Tones((0.08, 0.14), (0.1, 0.2), (0.82, 0.92)))),
        cloth=(
            Tones((0.04, 0.09), (0.6, 0.85), (0.6, 0.85)),
            Tones((0.12, 0.2), (0.5, 0.75), (0.5, 0.8)),
            Tones((0.45, 0.54), (0.4, 0.65), (0.35, 0.65)),
            Tones((0.04, 0.08), (0.4, 0.6), (0.25, 0.45)),
        ),
        cloths=("discs", "discs", "stripes", "rings"),
        rugs=("rings", "rings", "discs", "carpet"),
        metals=(BRASS, METAL, BLACK),
        leather=Tones((0.0, 0.12), (0.5, 0.75), (0.35, 0.7)),
        glaze=Tones((0.0, 0.55), (0.5, 0.9), (0.55, 0.95)),
        warmth=(0.55, 0.75),
        daylight=(0.9, 1.0),
        exposure=(0.4, 0.5),
        town=(0.2, 0.9),
        lights=(2, 1),
    ),
    "industrial": Look(
        woods=(
            Surface("steel", Tones((0.55, 0.65), (0.03, 0.12), (0.3, 0.62)), (0.72, 0.85), gloss=0.4),
            Surface("steel", Tones((0.3, 0.6), (0.2, 0.45), (0.25, 0.45)), (0.8, 0.9), gloss=0.3),
            Surface("scaffold", Tones((0.06, 0.1), (0.2, 0.4), (0.38, 0.6)), (0.5, 0.65)),
        ),
        walls=(
            Surface("concrete", Tones((0.08, 0.6), (0.01, 0.05), (0.5, 0.72)), (0.8, 0.9)),
            Surface("concrete", Tones((0.08, 0.6), (0.01, 0.05), (0.5, 0.72)), (0.8, 0.9)),
            Surface("brick", Tones((0.0, 0.05), (0.45, 0.65), (0.4, 0.6)), (0.62, 0.8), (0.9, 1.2)),
            Surface("brick", Tones((0.0, 0.1), (0.03, 0.15), (0.6, 0.82)), (0.8, 0.9), (0.9, 1.2)),
        ),
        floors=(
            Surface("concrete", Tones((0.08, 0.6), (0.01, 0.06), (0.42, 0.65)), (0.78, 0.88), (1.2, 2.0), 0.3),
            Surface("tread", Tones((0.55, 0.65), (0.02, 0.08), (0.4, 0.6)), (0.7, 0.8), gloss=0.5),
            Surface("scaffold", Tones((0.06, 0.09), (0.25, 0.45), (0.35, 0.55)), (0.5, 0.65)),
        ),
        ceilings=(
            Surface("concrete", Tones((0.08, 0.6), (0.01, 0.05), (0.55, 0.75)), (0.8, 0.9)),
            Surface("corrugated", Tones((0.5, 0.65), (0.02, 0.08), (0.5, 0.7)), (0.6, 0.7), gloss=0.3),
        ),
        cloth=(
            Tones((0.6, 0.66), (0.45, 0.7), (0.2, 0.42)),
            Tones((0.0, 0.04), (0.6, 0.8), (0.3, 0.5)),
            Tones((0.36, 0.46), (0.45, 0.65), (0.18, 0.35)),
            Tones((0.1, 0.14), (0.7, 0.9), (0.55, 0.75)),
        ),
        cloths=("chevron", "chevron", "patches"),
        rugs=("chevron", "patches"),
        metals=(IRON, COPPER, IRON),
        leather=Tones((0.03, 0.07), (0.5, 0.7), (0.18, 0.36)),
        glaze=Tones((0.0, 1.0), (0.05, 0.5), (0.2, 0.6)),
        warmth=(0.38, 0.55),
        daylight=(0.72, 0.85),
        exposure=(0.34, 0.43),
        town=(1.4, 2.0),
        lights=(4, 4),
    ),
}
HELD_OUT = "industrial"
"""The style that no training room has."""
STYLES: tuple[str, ...] = tuple(name for name in LOOKS if name != HELD_OUT)
"""The styles of training rooms, drawn with equal chances."""


class Style:
    """Draws materials for the pieces of one room.

    Args:
        draw: A stream of its own: what a style draws changes nothing else of the room.
        name: One of LOOKS; None draws one of STYLES.

    Raises:
        ConfigError: There is no such style.
    """

    def __init__(self, draw: Draw, name: str | None = None) -> None:
        drawn = draw.pick(STYLES)
        self.name = drawn if name is None else name
        if self.name not in LOOKS:
            raise ConfigError(unknown("style of rooms", self.name, LOOKS))
        self.look = LOOKS[self.name]
        self.draw = draw
        self.evening = draw.chance(0.3)
        self.woods = [self.surface(self.look.woods) for _ in range(draw.integer(2, 3))]
        self.tones = [draw.colour(*draw.pick(self.look.cloth)) for _ in range(3)]

    def surface(self, choices: tuple[Surface, ...]) -> Material:
        """One of the surfaces, with colours of its own."""
        draw = self.draw
        chosen = draw.pick(choices)
        base, seed = draw.colour(*chosen.tones), draw.seed()
        second, third = shade(base, draw.uniform(*chosen.contrast)), self._third(chosen.pattern, base)
        return Material(chosen.pattern, base, second, third, draw.uniform(*chosen.scale), seed, chosen.gloss)

    def _third(self, pattern: str, base: RGB) -> RGB:
        """What joins, gaps, rust or figures are coloured."""
        if pattern in ("tiles", "brick"):
            return blend(shade(base, 0.7), (0.78, 0.76, 0.72), 0.5)
        if pattern == "steel":
            return hsv(self.draw.uniform(0.03, 0.06), 0.6, self.draw.uniform(0.3, 0.5))
        return self.accent() if pattern in ("discs", "terrazzo") else shade(base, 0.4)

    def wood(self) -> Material:
        """One of the room's woods, or of what stands for wood in this style."""
        return self.draw.pick(self.woods)

    def accent(self) -> RGB:
        """One of the room's three colours of cloth, a little lighter or darker."""
        return shade(self.draw.pick(self.tones), self.draw.uniform(0.85, 1.15))

    def pale(self) -> RGB:
        """A near-white."""
        return self.draw.colour(saturation=(0.01, 0.1), value=(0.78, 0.94))

    def cloth(self, patterned: float = 0.5) -> Material:
        """Upholstery, a blanket or a pillow: plain or patterned."""
        draw = self.draw
        base = self.accent() if draw.chance(0.8) else self.pale()
        second = self.pale() if draw.chance(0.4) else self.accent()
        pattern = draw.pick(self.look.cloths) if draw.chance(patterned) else "fabric"
        if pattern == "fabric":
            second = shade(base, draw.uniform(0.6, 0.8))
        scale, turned = draw.uniform(0.5, 1.0), draw.chance(0.3)
        return Material(pattern, base, second, self.accent(), scale, draw.seed(), turned=turned)

    def leather(self) -> Material:
        """Smooth upholstery with a sheen."""
        return Material("plain", self.draw.colour(*self.look.leather), seed=self.draw.seed(), gloss=0.35)

    def glaze(self) -> Material:
        """China, painted metal or plastic."""
        return Material("plain", self.draw.colour(*self.look.glaze), seed=self.draw.seed(), gloss=0.6)

    def metal(self) -> Material:
        """Rods, knobs and feet."""
        return self.draw.pick(self.look.metals)

    def frame(self) -> Material:
        """Painted window frames: white, or black where metal is bare."""
        return BLACK if self.look.lights[1] > 3 else Material("plain", (0.92, 0.92, 0.9), seed=self.draw.seed())

    def stone(self) -> Material:
        """A worktop or a chimneypiece of stone."""
        base = self.draw.colour((0.05, 0.6), (0.01, 0.1), (0.3, 0.9))
        return Material("marble", base, shade(base, 0.6), seed=self.draw.seed(), gloss=0.5)

    def wall(self) -> Material:
        """Paint, paper, plaster, boards, concrete or brick."""
        return self.surface(self.look.walls)

    def floor(self) -> Material:
        """Boards, parquet, tiles, stone, carpet or metal."""
        return self.surface(self.look.floors)._replace(turned=self.draw.chance(0.5))

    def ceiling(self) -> Material:
        """Nearly white paint, boards, concrete or sheet metal."""
        return self.surface(self.look.ceilings)

    def rug(self) -> Material:
        """A rug in the room's colours."""
        draw = self.draw
        pattern, scale = draw.pick(self.look.rugs), draw.uniform(1.0, 2.2)
        return Material(pattern, self.accent(), self.pale(), self.accent(), scale, draw.seed(), turned=draw.chance(0.5))

    def foliage(self) -> Material:
        """Leaves."""
        base = self.draw.colour((0.24, 0.36), (0.4, 0.7), (0.3, 0.6))
        return Material("leaves", base, shade(base, 0.55), seed=self.draw.seed())

    def books(self) -> Material:
        """A run of spines."""
        draw = self.draw
        first, second = draw.colour(saturation=(0.2, 0.7)), draw.colour(saturation=(0.2, 0.7))
        return Material("spines", first, second, self.pale(), draw.uniform(0.8, 1.5), draw.seed())

    def picture(self) -> Material:
        """What hangs in a frame."""
        draw = self.draw
        tones = [draw.colour(saturation=(0.2, 0.8), value=(0.3, 0.95)) for _ in range(3)]
        return Material("painting", tones[0], tones[1], tones[2], seed=draw.seed())
