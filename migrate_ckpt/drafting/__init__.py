"""Migrations written by comparing a checkpoint of before with one of after."""
