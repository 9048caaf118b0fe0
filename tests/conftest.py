"""What every test starts from: no window, a known random state."""
import os
import random

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile('here', deadline=None, max_examples=60, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
settings.load_profile('here')
if 'PYTEST_XDIST_WORKER' in os.environ: torch.set_num_threads(1) # a process a core

@pytest.fixture(autouse=True)
def known_state():
    random.seed(0) # of which fastai's dataloaders draw the order of their data
    np.random.seed(0)
    torch.manual_seed(0)
    yield
    plt.close('all')
