"""The materials of one room: a few woods, cloths and paints drawn once, so that its furniture belongs together."""

from medusa_cl.data.rooms.draws import RGB, Draw, blend, hsv, shade
from medusa_cl.data.rooms.scene import Material

METAL = Material("plain", (0.62, 0.62, 0.64), gloss=0.5)
BRASS = Material("plain", (0.72, 0.58, 0.3), gloss=0.5)
BLACK = Material("plain", (0.1, 0.1, 0.11), gloss=0.3)
WHITE = Material("plain", (0.9, 0.89, 0.86))


class Style:
    """Draws materials for the pieces of one room."""

    def __init__(self, draw: Draw) -> None:
        self.draw = draw
        self.hue = draw.uniform()
        self.woods = [self._wood() for _ in range(draw.integer(2, 3))]
        self.evening = draw.chance(0.3)

    def _wood(self) -> Material:
        draw = self.draw
        kind = draw.integer(0, 5)
        if kind == 0:  # painted white or pale
            base = draw.colour((0.08, 0.16), (0.02, 0.1), (0.78, 0.92))
            return Material("wood", base, shade(base, 0.93), scale=1.0, seed=draw.seed(), gloss=0.15)
        if kind == 1:  # painted in a colour
            base = draw.colour(saturation=(0.12, 0.4), value=(0.35, 0.75))
            return Material("wood", base, shade(base, 0.9), scale=1.0, seed=draw.seed(), gloss=0.15)
        base = hsv(draw.uniform(0.045, 0.1), draw.uniform(0.35, 0.65), draw.uniform(0.35, 0.85))
        grain = shade(base, draw.uniform(0.62, 0.8))
        return Material("wood", base, grain, scale=draw.uniform(0.6, 1.4), seed=draw.seed(), gloss=0.15)

    def wood(self) -> Material:
        """One of the room's woods."""
        return self.draw.pick(self.woods)

    def accent(self) -> RGB:
        """A colour near the room's hue or opposite to it."""
        draw = self.draw
        hue = self.hue + draw.pick((0.0, 0.08, 0.5, 0.42)) + draw.uniform(-0.05, 0.05)
        return hsv(hue % 1.0, draw.uniform(0.1, 0.5), draw.uniform(0.35, 0.85))

    def pale(self) -> RGB:
        """A near-white."""
        return self.draw.colour(saturation=(0.01, 0.1), value=(0.78, 0.94))

    def cloth(self, patterned: float = 0.5) -> Material:
        """Upholstery, a blanket or a pillow: plain or patterned."""
        draw = self.draw
        base = self.accent() if draw.chance(0.7) else self.pale()
        second = self.pale() if draw.chance(0.5) else self.accent()
        pattern = draw.pick(("stripes", "plaid", "dots", "stripes")) if draw.chance(patterned) else "fabric"
        if pattern == "fabric":
            second = shade(base, draw.uniform(0.6, 0.8))
        return Material(
            pattern, base, second, self.accent(), draw.uniform(0.5, 1.1), draw.seed(), turned=draw.chance(0.4)
        )

    def leather(self) -> Material:
        """Smooth dark upholstery with a sheen."""
        base = self.draw.colour((0.0, 0.1), (0.2, 0.6), (0.15, 0.5))
        return Material("plain", base, seed=self.draw.seed(), gloss=0.35)

    def glaze(self) -> Material:
        """China, painted metal or plastic."""
        base = self.draw.colour(saturation=(0.2, 0.85), value=(0.4, 0.95))
        return Material("plain", base, seed=self.draw.seed(), gloss=0.6)

    def metal(self) -> Material:
        """Steel, brass or black iron."""
        return self.draw.pick((METAL, BRASS, BLACK))

    def wall(self) -> Material:
        """Paint, wallpaper or brick."""
        draw = self.draw
        pattern = draw.pick(("plain", "plain", "plain", "dots", "stripes", "damask", "damask", "brick", "plain"))
        if pattern == "brick":
            base = draw.colour((0.0, 0.1), (0.05, 0.45), (0.5, 0.85))
            grout = blend(base, (0.8, 0.78, 0.75), 0.7)
            return Material("brick", base, shade(base, 0.86), grout, draw.uniform(0.9, 1.3), draw.seed())
        base = hsv(self.hue, draw.uniform(0.03, 0.22), draw.uniform(0.66, 0.92))
        second = blend(base, self.accent(), draw.uniform(0.12, 0.35))
        return Material(pattern, base, second, base, draw.uniform(0.8, 2.0), draw.seed())

    def floor(self) -> Material:
        """Boards, parquet, tiles or carpet."""
        draw = self.draw
        pattern = draw.pick(("planks", "planks", "planks", "parquet", "tiles", "tiles", "carpet"))
        turned = draw.chance(0.5)
        if pattern in ("planks", "parquet"):
            base = hsv(draw.uniform(0.05, 0.1), draw.uniform(0.25, 0.6), draw.uniform(0.45, 0.85))
            dark = shade(base, 0.35)
            return Material(
                pattern, base, shade(base, 0.75), dark, draw.uniform(0.7, 1.2), draw.seed(), gloss=0.25, turned=turned
            )
        if pattern == "tiles":
            base = draw.colour((0.02, 0.6), (0.02, 0.15), (0.6, 0.9))
            second = base if draw.chance(0.6) else shade(base, draw.uniform(0.4, 0.8))
            grout = shade(base, draw.uniform(0.5, 0.75))
            return Material("tiles", base, second, grout, draw.uniform(0.8, 1.8), draw.seed(), gloss=0.35)
        base = draw.colour(saturation=(0.05, 0.35), value=(0.4, 0.85))
        return Material("carpet", base, shade(base, 0.75), base, 1.0, draw.seed())

    def ceiling(self) -> Material:
        """Nearly white paint, sometimes boards."""
        base = self.pale()
        if self.draw.chance(0.15):
            return Material("planks", base, shade(base, 0.93), shade(base, 0.6), 1.0, self.draw.seed())
        return Material("plain", base, seed=self.draw.seed())

    def rug(self) -> Material:
        """A rug of one of four designs."""
        draw = self.draw
        pattern = draw.pick(("persian", "persian", "stripes", "carpet", "plaid"))
        scale = draw.uniform(1.0, 2.6)
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
