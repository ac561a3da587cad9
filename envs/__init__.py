"""Plants and their Gymnasium environments; importing this package registers the environments."""

from lipctrl.envs.plant import Plant
from lipctrl.envs.plant_env import PlantEnv
from lipctrl.envs.registry import environment_id, load_plant, make_plant, register_environments, shipped_plants
from lipctrl.envs.rollout import Rollout, rollout

__all__ = ["Plant", "PlantEnv", "Rollout", "environment_id", "load_plant", "make_plant", "rollout", "shipped_plants"]

register_environments()
