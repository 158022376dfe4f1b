"""klrl: policy optimisation under KL control.

The trust region you ask for is the trust region you get. The rooms:

* :mod:`klrl.kl` measures how far a policy moved,
* :mod:`klrl.trust_region` limits it,
* :mod:`klrl.policy` acts,
* :mod:`klrl.experience` collects,
* :mod:`klrl.run` keeps what happened,
* :mod:`klrl.agents` holds the algorithms, one short file per paper.

Importing this package loads nothing heavy; ``from klrl.agents import PPO`` does.
"""

__version__ = "0.1.0"
