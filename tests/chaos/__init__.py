"""Kills the processes of a training at random and checks that nothing but time was lost: ``make chaos``."""
