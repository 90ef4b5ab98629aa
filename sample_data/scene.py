"""A small painter of landscapes; what it can paint is planned in scenes.toml."""

import tomllib
import zlib
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageDraw

Array = NDArray[Any]
SEED, SIDE = 0, 28
SIZE = 8 * SIDE  # every picture is drawn eight times too large, then shrunk
Y, X = (np.mgrid[0:SIZE, 0:SIZE] + 0.5) / SIZE
PLAN: dict[str, Any] = tomllib.loads(Path(__file__).with_name("scenes.toml").read_text(encoding="utf-8"))


def rgb(code: str) -> Array:
    """The colour of six hexadecimal digits, from 0 to 1."""
    return np.array(ImageColor.getrgb("#" + code)) / 255


def ramp(value: Array, start: float, stop: float) -> Array:
    """Nought before the start, one after the stop, straight between."""
    return np.clip((value - start) / (stop - start), 0, 1)


class Scene:
    """One picture in the making; each public method draws one layer."""

    def __init__(self, name: str, horizon: float, time: str) -> None:
        self.rng = np.random.default_rng([SEED, zlib.crc32(name.encode())])
        self.horizon = horizon + self.rng.uniform(-0.04, 0.04)
        *codes, height, cloud, cover = PLAN["times"][time].split()
        self.top, self.mid, self.low, self.light, self.glow, self.cloud = map(rgb, (*codes, cloud))
        self.dark, self.misty = time in {"dusk", "night"}, time == "mist"
        self.sun = self.rng.uniform(0.15, 0.85), self.horizon * float(height)
        self.grain = self.noise(20, 20)
        self.img = np.zeros((SIZE, SIZE, 3))
        self.sky(float(cover), time == "night")

    def noise(self, across: int, down: int) -> Array:
        """Smooth random texture from 0 to 1: four octaves."""
        total: Array = np.zeros((SIZE, SIZE))
        for octave in range(4):
            grid = self.rng.random((down << octave, across << octave)).astype(np.float32)
            total += np.asarray(Image.fromarray(grid).resize((SIZE, SIZE), Image.Resampling.BICUBIC)) / 2.0**octave
        total -= total.min()
        total /= total.max()
        return total

    def paint(self, mask: Array, colour: Array) -> None:
        """Lay a colour, as it is, where the mask is."""
        self.img += (colour - self.img) * mask[..., None]

    def fill(self, mask: Array, code: str | Array, y: float = 1.0, shade: Any = 1.0) -> None:
        """Lay a land colour in the light of the hour, the hazier the nearer its foot is to the horizon."""
        haze = (0.75 if self.misty else 0.4) * float(np.exp(-max(0.0, y - self.horizon) / 0.16))
        colour = rgb(code) if isinstance(code, str) else code
        colour = colour * self.light * (np.asarray(shade) * (0.86 + 0.28 * self.grain))[..., None]
        self.paint(mask, colour * (1 - haze) + self.low * haze)

    def polygon(self, points: Array) -> Array:
        """The mask of a polygon."""
        mask = Image.new("L", (SIZE, SIZE))
        ImageDraw.Draw(mask).polygon([(float(x), float(y)) for x, y in points * SIZE], fill=1)
        return np.asarray(mask, dtype=float)

    def sky(self, cover: float, night: bool) -> None:
        """The sky's gradient, stars, sun or moon, and clouds lit from above."""
        stops = zip(self.top, self.mid, self.low, strict=True)
        self.img = np.stack([np.interp(Y / self.horizon, [0, 0.55, 1], stop) for stop in stops], axis=-1)
        for x, y, size in self.rng.random((45 * night, 3)):
            self.paint(ramp(np.hypot(X - x, Y - y), 0.008 + 0.01 * size, 0.006), self.glow)
        far = np.hypot(X - self.sun[0], Y - self.sun[1])
        self.paint(np.exp(-((far / 0.2) ** 2)) * (0.25 if self.dark else 0.6), self.glow)
        self.paint(ramp(far, 0.07, 0.06), self.glow)
        puff = self.noise(3, 7)
        lit = 0.5 + 3 * (puff - np.roll(puff, 10, axis=0))
        colour = self.cloud * (0.82 + 0.18 * np.clip(lit, 0, 1))[..., None]
        self.paint(ramp(puff, 1.02 - cover, 1.3 - cover) * 0.9, colour)

    def peaks(self, y: float, height: float, code: str, snow: float) -> None:
        """Mountains, the high ones behind, each with a sunny and a shady side and snow on top."""
        parts = np.sort(self.rng.uniform(0.5, 1, 5))[::-1]
        for x, part in zip(self.rng.permutation(5) / 4.5 + 0.05, parts, strict=True):
            rough = self.noise(6, 6) - 0.5
            top = y - height * part
            mask = ramp(Y - top - np.abs(X - x) * (0.9 + 0.3 * part) - 0.12 * rough[0], 0, 0.01)
            side = ramp((X - x + 0.5 * rough * (0.1 + Y - top)) * np.sign(self.sun[0] - 0.5), -0.015, 0.015)
            shade = 0.62 + 0.5 * side + 0.25 * rough
            self.fill(mask, code, y - 0.1 * part, shade)
            cap = ramp(Y - top + 0.25 * rough, 0.2 * snow * part, 0.16 * snow * part)
            self.fill(mask * cap, "f8fcff", y, 0.55 + 0.75 * shade)

    def hills(self, y: float, height: float, code: str) -> None:
        """Rolling land down to the foot of the picture."""
        crest = y - height * self.noise(2, 1)[0]
        shade = 1.15 - 0.4 * ramp(Y - crest, 0, 0.3) + 0.5 * (self.noise(5, 9) - 0.5)
        self.fill(ramp(Y - crest, 0, 0.006), code, y, shade)

    def dunes(self, y: float, height: float, code: str) -> None:
        """A wave of sand whose slopes are lit or shaded by the way they face."""
        crest = y - height * self.noise(2, 1)[0]
        ridge = np.convolve(np.pad(crest, 12, mode="edge"), np.ones(25) / 25, mode="valid")
        slope = np.gradient(ridge) * SIZE
        bent = np.clip((X + 0.7 * (Y - ridge)) * SIZE, 0, SIZE - 1).astype(int)
        shade = 0.86 + 0.32 * np.tanh(4 * slope[bent] * np.sign(0.5 - self.sun[0])) + 0.15 * (self.noise(3, 14) - 0.5)
        self.fill(ramp(Y - ridge, 0, 0.006), code, y, shade)

    def mesas(self, y: float, height: float, code: str) -> None:
        """Flat-topped rocks in layers."""
        crest = y - height * (0.15 + 0.85 * ramp(self.noise(3, 1)[0], 0.42, 0.52)) + 0.05 * self.noise(8, 1)[0]
        strata = np.sin(60 * Y + 5 * self.noise(2, 2)) * 0.12
        self.fill(ramp(Y - crest, 0, 0.006), code, y, 0.75 + strata + 0.6 * (self.noise(9, 2) - 0.25))

    def hump(self, y: float, height: float, width: float, code: str, x: float) -> None:
        """A single rise: a cape, an island, a cliff or a volcano."""
        crest = y - 1.25 * height * np.exp(-np.abs(X - x) / width) + 0.08 * self.noise(5, 1)[0]
        side = np.tanh((X - x + 0.3 * (self.noise(5, 5) - 0.5)) * 8) * np.sign(self.sun[0] - x)
        mask = ramp(Y - np.maximum(crest, y - height), 0, 0.006) * (y > Y)
        self.fill(mask, code, y, 0.9 + 0.2 * side + 0.5 * (self.noise(8, 4) - 0.5))

    def lava(self, x: float, y: float) -> None:
        """Fire in a crater and the smoke over it."""
        drift = x + 0.5 * np.maximum(y - Y, 0) ** 1.3 + 0.1 * (self.noise(3, 5) - 0.5)
        width = 0.05 + 0.28 * np.maximum(y - Y, 0)
        smoke = np.exp(-(((X - drift) / width) ** 2)) * ramp(Y, y + 0.02, y - 0.05) * self.noise(5, 5)
        self.fill(smoke.clip(0, 0.85), "b0a8a8", 1, 0.6 + 0.7 * self.noise(6, 6))
        flow = x + 0.12 * np.maximum(Y - y, 0) + 0.1 * (self.noise(3, 5) - 0.5)
        self.paint(ramp(np.abs(X - flow), 0.035, 0.015) * (y < Y) * ramp(Y, y + 0.3, y + 0.05), rgb("ff7020"))
        self.paint(np.exp(-(np.hypot((X - x) / 0.16, (Y - y) / 0.1) ** 2)) * 0.85, rgb("ff8030"))

    def aurora(self, strength: float) -> None:
        """Green curtains in a dark sky."""
        if self.dark:
            for foot in (0.24, 0.4):
                fold = foot + 0.16 * self.noise(2, 1)[0] - 0.08 - Y
                curtain = ramp(fold, -0.02, 0.02) * np.exp(-np.maximum(fold, 0) / 0.13) * (0.5 + self.noise(12, 1)[0])
                self.paint((strength * curtain).clip(0, 1), np.stack([0.3 + 1.2 * fold, 0.95 - fold, 0.55 + fold], -1))

    def water(self, y: float, code: str) -> None:
        """Water that mirrors what is drawn above it, with ripples and the sun's glitter."""
        depth = np.maximum(Y - y, 0)
        ripple = self.noise(3, 24) - 0.5
        rows = np.clip((y - depth * 0.9 + 0.15 * ripple * depth) * SIZE, 0, SIZE - 1).astype(int)
        columns = np.clip((X + 0.12 * ripple * np.sqrt(depth)) * SIZE, 0, SIZE - 1).astype(int)
        mirror, own = self.img[rows, columns], rgb(code) * self.light
        share = (0.3 + 0.45 * ramp(depth, 0, 0.5))[..., None]
        self.paint(1.0 * (y < Y), (mirror * (1 - share) + own * share) * (0.95 + 0.4 * ripple)[..., None])
        path = np.exp(-(((X - self.sun[0]) / (0.05 + 0.2 * depth)) ** 2)) * ramp(ripple, -0.05, 0.2)
        self.paint(path * (y < Y) * (0.8 if self.sun[1] > 0 else 0.1), self.glow)

    def waves(self, y: float, code: str) -> None:
        """Swells from the far to the near, each with foam on its crest."""
        for step in np.linspace(0, 1, 7) ** 1.6:
            crest = y + 0.58 * step - (0.02 + 0.12 * step) * self.noise(3, 1)[0]
            deep = Y - crest
            self.fill(ramp(deep, 0, 0.006), code, y + step, 1.25 - 0.6 * ramp(deep, 0, 0.05 + 0.15 * step))
            foam = ramp(self.noise(6, 6), 0.45, 0.7) * (deep > 0) * (deep < 0.012 + 0.03 * step)
            self.fill(foam * 0.9, "f4f8f8", y + step)

    def rows(self, y: float, code: str, between: str) -> None:
        """A field whose rows run to one point on the horizon."""
        x = self.rng.uniform(0.2, 0.8)
        stripe = np.sin((X - x) / (Y - y + 0.07) * 9 + 0.6 * self.noise(4, 4))[..., None]
        colour = rgb(between) + (rgb(code) - rgb(between)) * np.clip(0.6 + 1.2 * stripe, 0, 1)
        self.fill(1.0 * (y < Y), colour, y + 0.1, 0.9 + 0.25 * self.noise(6, 12))

    def road(self, y: float) -> None:
        """A winding road that narrows into the distance."""
        near = ramp(Y, y, 1)
        x = self.rng.uniform(0.35, 0.65) + 0.22 * np.sin(5 * np.sqrt(near) + self.rng.uniform(0, 6)) * (1 - 0.4 * near)
        width = 0.012 + 0.2 * near**1.4
        self.fill(ramp(width - np.abs(X - x), 0, 0.01) * (y < Y), "c8bca8", y + 0.2)

    def flowers(self, y: float, code: str) -> None:
        """Blossoms, larger and sparser towards the front."""
        for near in np.sort(self.rng.random(110) ** 1.5):
            x, foot, bright = self.rng.random(), y + (1 - y) * near, self.rng.uniform(0.8, 1.2)
            spot = ramp(np.hypot(X - x, (Y - foot) * 1.4), 0.008 + 0.022 * near, 0.002 + 0.012 * near)
            self.fill(spot, code if self.rng.random() < 0.7 else "fce070", foot, bright)

    def falls(self, y: float, foot: float) -> None:
        """A white ribbon of falling water with spray at its foot."""
        x = self.rng.uniform(0.35, 0.65) + 0.03 * (self.noise(1, 3) - 0.5)
        width = 0.07 + 0.06 * ramp(Y, y, foot)
        ribbon = ramp(width - np.abs(X - x), 0, 0.02) * (y < Y) * (foot > Y)
        self.fill(ribbon, "f0f8ff", foot, 0.75 + 0.4 * self.noise(24, 2))
        self.fill(0.8 * np.exp(-(((X - x) / 0.16) ** 2) - ((Y - foot) / 0.05) ** 2), "f0f8ff", foot)

    def towers(self, y: float, height: float, code: str) -> None:
        """A row of tall houses with lit or blind windows."""
        window = np.kron(self.rng.random((SIZE // 14, SIZE // 14)) < (0.45 if self.dark else 0.8), np.ones((14, 14)))
        window *= (X % 0.0625 > 0.022) * (Y % 0.0625 > 0.026)
        for left, right in pairwise(np.cumsum(self.rng.uniform(0.1, 0.2, 14)) - 0.15):
            top = y - height * self.rng.uniform(0.35, 1)
            box = (left < X) * (right > X) * (top < Y) * (y > Y)
            shade = self.rng.uniform(0.7, 1.2) * (1.12 - 0.3 * (X - left > 0.6 * (right - left)))
            self.fill(1.0 * box, code, y - 0.1, shade)
            pane = window * box * (right - 0.01 > X) * (top + 0.03 < Y)
            if self.dark:
                self.paint(pane * 0.85, rgb("ffd880"))
            else:
                self.fill(pane * 0.6, "34485c", y - 0.1)

    def places(self, y: float, size: float, count: float, x: float, spread: float) -> list[tuple[float, float, float]]:
        """Where things stand, and how large: side by side, the nearest last."""
        across = x + spread * ((np.arange(count) + self.rng.uniform(0.2, 0.8, int(count))) / count - 0.5)
        sizes = size * self.rng.uniform(0.72, 1.05, int(count))
        return [(left, y - 0.12 * (size - tall), tall) for tall, left in sorted(zip(sizes, across, strict=True))]

    def trees(self, y: float, size: float, count: float, code: str) -> None:
        """Round trees, their crowns lit from above."""
        for x, foot, tall in self.places(y, size, count, 0.5, 1):
            trunk = np.array([(-0.05, 0), (0.05, 0), (0.03, -0.5), (-0.03, -0.5)])
            self.fill(self.polygon(trunk * tall + (x, foot)), "4c3828", foot)
            leaf = self.noise(7, 7)
            crown = np.hypot((X - x) / 0.36, (Y - foot + 0.62 * tall) / 0.4) / tall + 0.7 * (leaf - 0.5)
            light = (foot - 0.62 * tall - Y + 0.4 * (X - x) * np.sign(self.sun[0] - 0.5)) / tall
            self.fill(ramp(crown, 1, 0.94), code, foot, 0.85 + 0.7 * light + 0.6 * (leaf - 0.5))

    def stamp(self, thing: str, y: float, size: float, count: float, x: float = 0.5, spread: float = 1.0) -> None:
        """Things made of polygons."""
        for left, foot, tall in self.places(y, size, count, x, spread):
            facing, tone = self.rng.choice([-1, 1]), self.rng.uniform(0.85, 1.1)
            for polygon in PLAN["things"][thing]:
                code, *corners = polygon.split(",")
                points = np.array(corners, dtype=float).reshape(-1, 2) * (facing * tall, -tall) + (left, foot)
                if code == "lamp" and self.dark:
                    self.lamp(points)
                else:
                    self.fill(self.polygon(points), "485868" if code == "lamp" else code, foot, tone)

    def lamp(self, points: Array) -> None:
        """A lit window and its halo."""
        x, y = points.mean(axis=0)
        self.paint(np.exp(-((np.hypot(X - x, Y - y) / (0.03 + np.ptp(points[:, 0]))) ** 2)) * 0.4, rgb("ffc860"))
        self.paint(self.polygon(points), rgb("ffe088"))


def settings(text: str) -> list[Any]:
    """The settings of a layer: a word of six is a colour, the others are numbers."""
    return [word if len(word) == 6 else float(word) for word in text.split(",")]


def draw(name: str, horizon: float, time: str, layers: list[str]) -> Array:
    """One clean picture."""
    scene = Scene(name, horizon, time)
    for layer in layers:
        kind, _, rest = layer.partition(":")
        if kind in PLAN["things"]:
            scene.stamp(kind, *settings(rest))
        else:
            getattr(scene, kind)(*settings(rest))
    if scene.rng.random() < 0.5:
        scene.img = scene.img[:, ::-1]
    large = Image.fromarray((scene.img.clip(0, 1) * 255).round().astype(np.uint8))
    return np.asarray(large.resize((SIDE, SIDE), Image.Resampling.LANCZOS))
