"""Certificates: what a loss does to a student that already agrees with its teacher.  (Imports torch.)"""
