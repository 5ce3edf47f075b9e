// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.37;

import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";
import {ERC20Permit} from "@openzeppelin/contracts/token/ERC20/extensions/ERC20Permit.sol";

/// @title A token for tests and local chains
/// @notice Warning: Anyone may mint any amount. `Deploy.s.sol` deploys it on a local chain only.
contract TestToken is ERC20Permit {
    constructor() ERC20("Littoral Test Token", "TEST") ERC20Permit("Littoral Test Token") {}

    function mint(address to, uint256 amount) external {
        _mint(to, amount);
    }
}
