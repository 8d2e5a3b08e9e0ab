package bypass

var spoofing []bypass
