"""Example tools. `toolwire chat --tools clients/example_tools.py` offers every function of this file."""

from typing import Any, Literal


def get_weather(city: str, unit: Literal["celsius", "fahrenheit"] = "celsius") -> dict[str, Any]:
    """Get the current weather for a city

    Args:
        city: Name of the city
        unit: Unit of the temperature
    """
    degrees = 5 + len(city) * 7 % 25
    return {"city": city, "weather": "sunny", "temperature": degrees if unit == "celsius" else degrees * 9 // 5 + 32}


def get_time(city: str) -> dict[str, Any]:
    """Get the local time in a city

    Args:
        city: Name of the city
    """
    return {"city": city, "time": f"{8 + len(city) % 12:02}:30"}


def add(a: float, b: float) -> dict[str, Any]:
    """Add two numbers

    Args:
        a: First number
        b: Second number
    """
    return {"sum": a + b}
