"""The small run of the browser's tests, served."""

from tests.browser.conftest import labelled as labelled
from tests.browser.conftest import page as page
