"""Units of measurement: what a word or sign behind a number means, and how units of one dimension convert."""

import re
from typing import NamedTuple


class Unit(NamedTuple):
    """A unit: `value * factor + offset` is in the dimension's base unit."""

    dimension: str
    factor: float
    offset: float = 0.0


KM_PER_HOUR = 1 / 3.6
# dimension -> factor to the base unit -> its words | its signs (case-sensitive). A word may have an s behind it.
_TABLE: dict[str, dict[float, str]] = {
    "length": {
        1e-9: "nanometre nanometer | nm",
        1e-6: "micrometre micrometer micron | µm μm",
        1e-3: "millimetre millimeter | mm",
        1e-2: "centimetre centimeter | cm",
        1.0: "metre meter | m",
        1e3: "kilometre kilometer | km",
        0.0254: "inch inches |",
        0.3048: "foot feet | ft",
        0.9144: "yard | yd",
        1609.344: "mile | mi",
        1852.0: "nautical_mile |",
        1.495978707e11: "astronomical_unit | AU",
        9.4607e15: "light-year light_year |",
    },
    "mass": {
        1e-6: "milligram | mg",
        1e-3: "gram gramme | g",
        1.0: "kilogram kilogramme kilo | kg",
        1e3: "tonne metric_ton |",
        907.185: "ton |",
        0.0283495: "ounce | oz",
        0.453592: "pound | lb lbs",
    },
    "time": {
        1e-3: "millisecond | ms",
        1.0: "second sec | s",
        60.0: "minute min |",
        3600.0: "hour hr | h",
        86400.0: "day |",
        604800.0: "week |",
        2629800.0: "month |",
        31557600.0: "year yr |",
        315576000.0: "decade |",
        3155760000.0: "century centuries |",
        31557600000.0: "millennium millennia |",
    },
    "volume": {
        1e-3: "millilitre milliliter | ml mL",
        1e-2: "centilitre centiliter | cl",
        1.0: "litre liter | l L",
        1e3: "cubic_metre cubic_meter | m3 m³",
        0.00492892: "teaspoon tsp |",
        0.0147868: "tablespoon tbsp |",
        0.236588: "cup |",
        0.473176: "pint |",
        0.946353: "quart |",
        3.785412: "gallon |",
    },
    "area": {
        1e-4: "square_centimetre square_centimeter | cm2 cm²",
        1.0: "square_metre square_meter | m2 m²",
        1e4: "hectare | ha",
        1e6: "square_kilometre square_kilometer | km2 km²",
        0.092903: "square_foot square_feet |",
        4046.856: "acre |",
        2589988.1: "square_mile |",
    },
    "speed": {
        1.0: "metre_per_second metres_per_second meters_per_second | m/s",
        1e3: "kilometres_per_second kilometers_per_second | km/s",
        KM_PER_HOUR: "kilometre_per_hour kilometres_per_hour kilometers_per_hour kilometres_an_hour kph | km/h",
        0.44704: "mile_per_hour miles_per_hour miles_an_hour mph |",
        0.514444: "knot |",
    },
    "energy": {
        1.0: "joule | J",
        1e3: "kilojoule | kJ",
        4.184: "calorie | cal",
        4184.0: "kilocalorie kcal |",
        3.6e6: "kilowatt-hour kilowatt_hour | kWh",
    },
    "power": {
        1.0: "watt | W",
        1e3: "kilowatt | kW",
        1e6: "megawatt | MW",
        1e9: "gigawatt | GW",
        745.7: "horsepower |",
    },
    "data": {
        1.0: "byte |",
        1e3: "kilobyte | kB KB",
        1e6: "megabyte | MB",
        1e9: "gigabyte | GB",
        1e12: "terabyte | TB",
    },
    "voltage": {1e-3: "millivolt | mV", 1.0: "volt | V"},
    "frequency": {1.0: "hertz | Hz", 1e3: "kilohertz | kHz", 1e6: "megahertz | MHz", 1e9: "gigahertz | GHz"},
    "pressure": {1.0: "pascal | Pa", 1e3: "kilopascal | kPa hPa", 1e5: "bar |", 101325.0: "atmosphere |"},
    "ratio": {0.01: "percent per_cent percentage_point | %", 1.0: "|"},
    "dollar": {1.0: "dollar USD | $", 0.01: "cent |"},
    "euro": {1.0: "euro EUR | €"},
    "sterling": {1.0: "pound_sterling GBP | £"},
    "yen": {1.0: "yen JPY | ¥"},
}
_TEMPERATURE = {
    "celsius": Unit("temperature", 1.0, 273.15),
    "fahrenheit": Unit("temperature", 5 / 9, 459.67 * 5 / 9),
    "kelvin": Unit("temperature", 1.0),
}
FRACTION = Unit("ratio", 1.0)
CURRENCY = {sign: Unit(name, 1.0) for sign, name in zip("$€£¥", ("dollar", "euro", "sterling", "yen"), strict=True)}

POUND, STERLING = Unit("mass", 0.453592), CURRENCY["£"]  # "5 pounds" may be either


def _named() -> tuple[dict[str, Unit], dict[str, Unit]]:
    """(units by word, units by sign)."""
    words, signs = {}, {}
    for dimension, factors in _TABLE.items():
        for factor, names in factors.items():
            of_words, of_signs = names.split("|")
            for word in of_words.split():
                words[word.replace("_", " ").lower()] = words[word.replace("_", " ").lower() + "s"] = Unit(
                    dimension, factor
                )
            signs |= {sign: Unit(dimension, factor) for sign in of_signs.split()}
    for name, unit in _TEMPERATURE.items():
        for form in (name, f"degrees {name}", f"degree {name}"):
            words[form] = unit
        signs |= {f"°{name[0].upper()}": unit, f"° {name[0].upper()}": unit}
    return words, signs | {"K": _TEMPERATURE["kelvin"]}


WORDS, SIGNS = _named()
_ALTERNATIVES = "|".join(re.escape(word).replace(r"\ ", r"[ ]") for word in sorted(WORDS, key=len, reverse=True))
# A dash before the word may be one of "5-mile"; what follows is no letter, so that "5 metres" is no "5 m".
WORD_UNIT = re.compile(rf"[ \u00a0\u202f-]?({_ALTERNATIVES})(?![\w])", re.IGNORECASE)
_SIGN_ALTERNATIVES = "|".join(map(re.escape, sorted(SIGNS, key=len, reverse=True)))
SIGN_UNIT = re.compile(rf"[ \u00a0\u202f]?({_SIGN_ALTERNATIVES})(?![\w²³/])")


def unit_at(text: str, place: int, signs: bool) -> tuple[Unit, int] | None:
    """The unit that begins at `place`, right behind a number, and where it ends. `signs`: the number is in digits."""
    if match := WORD_UNIT.match(text, place):
        return WORDS[match[1].lower()], match.end()
    if signs and (match := SIGN_UNIT.match(text, place)):
        return SIGNS[match[1]], match.end()
    return None


def converted(value: float, unit: Unit, other: Unit) -> float:
    """A value in another unit of the same dimension."""
    return (value * unit.factor + unit.offset - other.offset) / other.factor
