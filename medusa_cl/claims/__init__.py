"""What Medusa's features are worth: backbones pretrained in several ways under heads of several kinds, in one table."""
