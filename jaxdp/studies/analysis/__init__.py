"""Analyses."""
from jaxdp.studies.analysis._fanova import Fanova, fanova
