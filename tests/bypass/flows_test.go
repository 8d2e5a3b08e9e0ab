package bypass

var flows []bypass
