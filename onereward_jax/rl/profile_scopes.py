"""The update's parts, as profiles and `onereward plan` name them; the last three with their backward passes."""

REFERENCE, ROLLOUT = "reference_rollout", "policy_rollout"
PREDICTION, DECODING, JUDGEMENT = "prediction", "decoding", "judgement"
PARTS = (REFERENCE, ROLLOUT, PREDICTION, DECODING, JUDGEMENT)
