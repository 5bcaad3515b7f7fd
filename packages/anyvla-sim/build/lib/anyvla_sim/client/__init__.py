"""A client of policy servers, for robots and simulators: numpy, msgpack and websockets; Python 3.8 or later.

from anyvla_sim.client import Client

with Client("ws://gpu-machine:8000") as client, client.start("open the drawer") as session:
    action = session.act({"images": {"front": image}, "proprio": proprio})
"""

from anyvla_sim.client.client import Chunk as Chunk
from anyvla_sim.client.client import Client as Client
from anyvla_sim.client.client import Session as Session
from anyvla_sim.client.errors import AccessDenied as AccessDenied
from anyvla_sim.client.errors import ClientError as ClientError
from anyvla_sim.client.errors import NoAnswer as NoAnswer
from anyvla_sim.client.errors import ServerError as ServerError
from anyvla_sim.client.errors import SessionLost as SessionLost
from anyvla_sim.client.errors import Unreachable as Unreachable
from anyvla_sim.client.errors import WrongObservation as WrongObservation
from anyvla_sim.client.robot import Group as Group
from anyvla_sim.client.robot import Robot as Robot
