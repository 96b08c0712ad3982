"""The parts of `simulated_quarter.py`: texts, traffic, engines, the plan of what happens, the people, the story."""
